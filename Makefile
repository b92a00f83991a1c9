# Every target sets up what it needs in ./.venv; a second run starts at once.
#
# uv is used where it is installed and works, since it picks the torch build (CPU, CUDA version)
# that fits this machine; otherwise pip.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Else each process that the tests start compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.stamp-runtime
DEV := $(VENV)/.stamp-dev

# The native CPU kernels: the install builds them, and a changed source builds them again.
CPU := rosellm/roseinfer/kernels/cpu
NATIVE := $(CPU)/_rosellm_cpu.so

# Any Python from 3.11 on; `make PYTHON=...` chooses another one.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { command -v $$python; break; }; done)

MODEL ?=
ARGS ?=
BENCH_ARGS ?=
WORKERS ?= 2
FUZZ_CASES ?= 1000000
FUZZ_SEED ?= $(shell date +%s)
EXTRAS :=
# Files of tests are shared out among processes: much of a run is waiting for a server's start.
BESIDE = --numprocesses $(WORKERS) --dist loadfile
named_model = $(if $(MODEL),"$(MODEL)")

.PHONY: help serve test test-full test-clients fuzz fuzz-files soak sanitize check format gpu bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

serve: $(RUNTIME) $(NATIVE) ## serve the demo model, or another: make serve MODEL=path [ARGS="--port 8080"]
	@exec $(BIN)/rosellm serve $(named_model) $(ARGS)

test: $(DEV) $(NATIVE) ## run the tests: CPU, offline, quick; WORKERS=0 runs them in one process
	$(BIN)/python -m pytest $(BESIDE) $(ARGS)

test-full: $(DEV) $(NATIVE) ## run the slow tests too
	TESTS_THOROUGH=1 $(BIN)/python -m pytest $(BESIDE) -m "not gpu and not network" $(ARGS)

fuzz: $(DEV) $(NATIVE) ## send requests made at random: make fuzz [FUZZ_CASES=1000000] [FUZZ_SEED=7]
	@exec $(BIN)/python -m tests.fuzz.run --cases $(FUZZ_CASES) --seed $(FUZZ_SEED) $(ARGS)

fuzz-files: $(DEV) $(NATIVE) ## take in files damaged at random: make fuzz-files [FUZZ_SEED=7] [ARGS="--count 10000"]
	@exec $(BIN)/python -m tests.faults.hostile_files --first $(FUZZ_SEED) $(ARGS)

soak: $(RUNTIME) $(NATIVE) ## serve half an hour of load with faults in it: make soak [MODEL=path] [ARGS="--minutes 5"]
	@exec $(BIN)/python -m benchmarks.soak $(named_model) $(ARGS)

test-clients: ## run other people's clients against a server, from an environment of their own
	@HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(MAKE) VENV=.venv-clients EXTRAS=[test,clients] ARGS="tests/clients -W default $(ARGS)" test

sanitize: $(DEV) ## run the native kernels' tests under sanitizers
	scripts/sanitize $(ARGS)

check: $(DEV) ## formatting, lint, types, import levels
	scripts/check

format: $(DEV) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

gpu: ## run the GPU tests, then the benchmark, with this machine's Python and torch: no .venv
	@export PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}"; \
	$(PYTHON) -m pytest -m gpu tests/gpu $(ARGS); tests=$$?; \
	$(PYTHON) -m benchmarks.gpu $(BENCH_ARGS) && exit $$tests

bench: $(RUNTIME) $(NATIVE) ## measure offline throughput: make bench [MODEL=path] [ARGS=...]
	@exec $(BIN)/rosellm bench offline $(named_model) $(ARGS)

clean: ## remove .venv and every cache
	rm -rf $(VENV) .venv-clients .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	rm -f $(NATIVE)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if command -v uv >/dev/null && uv venv --seed --allow-existing \
			--python "$(or $(PYTHON),3.12)" $(VENV); then :; \
	elif [ -z "$(PYTHON)" ]; then \
		echo "rosellm needs Python 3.11 or newer: install it, or name it with make PYTHON=..." >&2; \
		exit 1; \
	elif ! "$(PYTHON)" -m venv $(VENV); then \
		rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; \
		exit 1; \
	fi

define install
	@echo "installing rosellm$(EXTRAS) into $(VENV): torch is large, the first time takes minutes"
	@if command -v uv >/dev/null && uv pip install --python $(BIN)/python --torch-backend auto \
			--constraint constraints.txt --editable ".$(EXTRAS)"; then :; \
	else \
		if command -v uv >/dev/null; then echo "uv could not install it, so pip does"; fi; \
		$(BIN)/python -m pip install --constraint constraints.txt --editable ".$(EXTRAS)"; \
	fi
endef

$(RUNTIME): $(BIN)/python pyproject.toml constraints.txt
	$(install)
	@touch $@

$(DEV): EXTRAS := [test,dev]
$(DEV): $(BIN)/python pyproject.toml constraints.txt
	$(install)
	@touch $@ $(RUNTIME)

$(NATIVE): $(wildcard $(CPU)/*.cpp $(CPU)/*.h $(CPU)/*.inl $(CPU)/build.py) | $(BIN)/python
	@echo "building the native CPU kernels: about a minute"
	@$(BIN)/python $(CPU)/build.py || echo "going on without native CPU kernels" >&2
