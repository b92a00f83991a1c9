"""Loading the library, and every reason why it may not be there."""

from __future__ import annotations

import _ctypes
import ctypes
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.kernels.cpu import build
from rosellm.roseinfer.kernels.cpu import library as module
from rosellm.roseinfer.kernels.cpu.library import (
    SIGNATURES,
    Library,
    Unavailable,
    address,
    load,
    open_library,
)

FUNCTION = re.compile(r"^\w[\w *:]*?\b(rose_\w+)\(([^)]*)\)", re.MULTILINE)


@pytest.fixture
def load_again(library: Library) -> Iterator[Callable[[], Library | Unavailable]]:
    """Load the library as a process with another environment would."""
    level, threads = library.level, library.threads
    yield load.__wrapped__
    library.set_level(level)
    library.set_threads(threads)


def test_every_function_has_its_types():
    source = (build.HERE / "api.cpp").read_text()
    counts = {
        name: len(re.findall(r"[^,]+", parameters)) for name, parameters in FUNCTION.findall(source)
    }
    assert counts == {name: len(arguments) for name, (_, arguments) in SIGNATURES.items()}


def structs(kind: Any) -> Iterator[type[ctypes.Structure]]:
    """Find the structs in a type of an argument."""
    kind = getattr(kind, "_type_", kind)  # what a pointer points to
    if isinstance(kind, type) and issubclass(kind, ctypes.Structure):
        yield kind
        for _, field in kind._fields_:
            yield from structs(field)


def test_every_struct_is_laid_out_as_in_the_sources(tmp_path):
    """Checked by the compiler, which only has to read for it."""
    compiler = build.compiler() or pytest.skip("no C++ compiler")
    kinds = {kind for _, types in SIGNATURES.values() for each in types for kind in structs(each)}
    lines = ["#include <cstddef>", '#include "api.cpp"', "using namespace rose;"]
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        name = kind.__name__
        lines.append(f'static_assert(sizeof({name}) == {ctypes.sizeof(kind)}, "{name}");')
        for field, *_ in kind._fields_:
            at = getattr(kind, field).offset
            lines.append(f'static_assert(offsetof({name}, {field}) == {at}, "{name}.{field}");')
    source = tmp_path / "layout.cpp"
    source.write_text("\n".join(lines))
    flags = ["-std=c++17", "-fsyntax-only", '-DROSE_INTERFACE=""', f"-I{build.HERE}"]
    done = subprocess.run([*compiler, *flags, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(kinds) > 1


def test_the_best_level_is_taken(library, monkeypatch, load_again):
    monkeypatch.delenv(module.LEVEL_VARIABLE, raising=False)
    levels = [name for name in build.LEVELS if library.set_level(name)]
    assert levels[0] == "portable"
    assert load_again().level == levels[-1]


def test_the_environment_says_level_and_threads(library, monkeypatch, load_again, level):
    monkeypatch.setenv(module.LEVEL_VARIABLE, level)
    monkeypatch.setenv(module.THREADS_VARIABLE, "3")
    assert load_again().describe() == f"native {level}, 3 threads"
    monkeypatch.setenv(module.THREADS_VARIABLE, "1")
    assert load_again().describe() == f"native {level}, 1 thread"


def test_threads_are_those_of_the_machine(monkeypatch, load_again):
    monkeypatch.setenv(module.THREADS_VARIABLE, "")
    monkeypatch.setattr(module, "usable_cores", lambda: 5)
    assert load_again().threads == 5


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1025", "²"])
def test_a_number_of_threads_that_cannot_be_is_an_error(monkeypatch, load_again, value):
    monkeypatch.setenv(module.THREADS_VARIABLE, value)
    with pytest.raises(ConfigError, match="ROSELLM_CPU_THREADS must be a number from 1 to 1024"):
        load_again()


def test_a_level_that_does_not_exist_is_an_error(monkeypatch, load_again):
    monkeypatch.setenv(module.LEVEL_VARIABLE, "AVX512")
    with pytest.raises(
        ConfigError,
        match="no level is called 'AVX512': portable, avx2, avx2_vnni, avx512, avx512_bf16, amx",
    ):
        load_again()


def test_a_level_that_the_processor_lacks_is_an_error(monkeypatch, load_again):
    monkeypatch.setenv(module.LEVEL_VARIABLE, "avx9")
    monkeypatch.setitem(build.LEVELS, "avx9", ())
    with pytest.raises(ConfigError, match="ROSELLM_CPU_LEVEL: this processor has no avx9"):
        load_again()


def test_a_named_library_has_to_be_there(monkeypatch):
    monkeypatch.setenv(module.PATH_VARIABLE, "/no/such/library")
    with pytest.raises(ConfigError, match="ROSELLM_CPU_LIBRARY=/no/such/library: native CPU"):
        load.__wrapped__()


def unavailable(path: Path) -> str:
    found = open_library(path)
    assert isinstance(found, Unavailable)
    assert len(found.reason.splitlines()) == 1
    assert "plain torch serves, several times slower" in found.reason
    assert found.reason.endswith("run: python -m rosellm.roseinfer.kernels.cpu.build")
    return found.reason


def test_a_library_that_is_not_built_is_a_reason(tmp_path):
    reason = unavailable(tmp_path / "library.so")
    assert reason.startswith("native CPU kernels are not built: ")
    assert "install g++ or clang++" in reason


def test_a_library_that_does_not_load_is_a_reason(tmp_path):
    path = tmp_path / "library.so"
    path.write_text("of another machine, say")
    assert unavailable(path).startswith("native CPU kernels cannot be loaded (")


def test_a_library_without_our_functions_is_a_reason():
    assert unavailable(Path(_ctypes.__file__)).startswith("native CPU kernels are out of date (")


def test_a_library_of_other_sources_is_a_reason(library, monkeypatch):
    monkeypatch.setattr(module, "interface", lambda: "0123456789abcdef")
    assert "was built from other sources" in unavailable(Path(library.c._name))


def test_the_address_of_a_tensor():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, 4)
    assert address(tensor[1]) == tensor.data_ptr() + 16
    assert address(None) is None
