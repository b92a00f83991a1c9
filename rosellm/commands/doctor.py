"""``rosellm doctor``: whether this machine and these flags are fit for serving, and what to do.

Each check is a function that finds something out and says how good that is. Imports no torch:
what only torch can tell is asked in another process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import rosellm
from rosellm.commands import torch_report
from rosellm.commands.tables import show_list, size
from rosellm.roseinfer import host_memory
from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.errors import RosellmError
from rosellm.roseinfer.kernels.cpu.cores import usable_cores
from rosellm.roseinfer.kernels.cpu.library import LEVEL_VARIABLE, PATH_VARIABLE, Unavailable, load
from rosellm.roseinfer.loading.open import check_checkpoint
from rosellm.roseinfer.quant.cache import cache_root
from rosellm.roseinfer.server import flags, listen
from rosellm.roseinfer.server.defaults import load_defaults
from rosellm.roseinfer.server.keys import exposure, load_keys
from rosellm.roseinfer.server.prompts import TextTools
from rosellm.roseinfer.server.tls import check_tls
from rosellm.roseinfer.text.load import load_tokenizer

Status = Literal["ok", "warning", "error"]

EXAMPLES = """\
The flags are those of rosellm serve. An error is what would stop it, and makes the exit code 1; a
warning is what would make it slower or shakier than it could be.

examples:
  rosellm doctor
  rosellm doctor path/to/my-llama --host 0.0.0.0 --json
"""

FEATURES = {
    "x86": ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    "arm": ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
}
EXTRAS = {
    "opentelemetry.sdk": "traces",
    "matplotlib": "the picture of `rosellm train`",
    "uvloop": "a quicker event loop",
}
_LITTLE_MEMORY = 2 << 30
_LITTLE_DISK = 5 << 30
_SPARE_FILES = 64  # weights, libraries, logs, the engine's socket


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        advice: what to do about it, unless it is well.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


Findings = Iterator[Finding]


def add_flags(command: flags.Parser) -> None:
    """Add the flags of ``rosellm doctor``: those of ``rosellm serve``, and its own."""
    flags.add_flags(command)
    command.epilog = EXAMPLES
    command.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Show what was found. Returns the exit code: 1 where something would stop ``serve``."""
    given = vars(args)
    as_json = given.pop("json")
    findings = list(examine(given))
    broken = any(each.status == "error" for each in findings)
    if as_json:
        print(json.dumps({"ok": not broken, "checks": [asdict(each) for each in findings]}))
    else:
        rows = [(each.status, each.name, each.found, each.advice) for each in findings]
        show_list("rosellm doctor", ("", "check", "found", "what to do"), rows)
    return 1 if broken else 0


def examine(given: dict[str, Any]) -> Findings:
    """All checks, in the order to be shown."""
    options = None
    refused = ""
    try:
        options = flags.options(given)
    except RosellmError as error:
        refused = str(error)
    yield Finding("rosellm", "ok", f"{rosellm.__version__}, Python {platform.python_version()}")
    yield from _processor()
    yield from _kernels()
    report = torch_report.ask(EngineConfig() if options is None else options.engine)
    yield from _torch(report)
    yield from _memory()
    yield from _files(options)
    yield from _disks()
    yield from _extras()
    if options is None:
        yield Finding("configuration", "error", refused, "correct the flag, file or variable")
        return
    yield Finding("configuration", "ok", f"serves {options.model_name}")
    exposed = list(_exposure(options))
    yield from exposed
    if all(each.status != "error" for each in exposed):  # no address is tried that may not be
        yield from _port(options)
    yield from _model(options, report)


# -- the machine -----------------------------------------------------------------------------


def _processor() -> Findings:
    about = Path("/proc/cpuinfo")
    fields = _first_processor(about.read_text()) if about.exists() else {}
    model = fields.get("model name") or platform.processor() or platform.machine()
    yield Finding("processor", "ok", f"{model}, {platform.machine()}")
    yield _cores()
    words = (fields.get("flags") or fields.get("Features") or "").split()
    if not words:
        yield Finding("instructions", "ok", "the system does not say")
        return
    kind = "arm" if "Features" in fields else "x86"
    has = [name for name in FEATURES[kind] if name in words]
    yield Finding(
        "instructions", "ok", f"{', '.join(has) or 'none'} of {', '.join(FEATURES[kind])}"
    )


def _first_processor(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _cores() -> Finding:
    there = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    usable = usable_cores()
    found = f"{usable} to use; the machine has {there}, this process may run on {allowed}"
    if usable > 1:
        return Finding("cores", "ok", found)
    advice = "the server and the engine share one core: give it two or more (affinity, CPU quota)"
    return Finding("cores", "warning", found, advice)


def _kernels() -> Findings:
    try:
        library = load()
    except RosellmError as error:
        yield Finding("kernels", "error", str(error), "correct the variable, or unset it")
        return
    if isinstance(library, Unavailable):
        yield Finding("kernels", "warning", "none: plain torch computes", library.reason)
        return
    forced = os.environ.get(LEVEL_VARIABLE)
    why = f"asked for by {LEVEL_VARIABLE}" if forced else "the best this processor has"
    if os.environ.get(PATH_VARIABLE):
        why += f", from {PATH_VARIABLE}"
    found = f"{library.describe()} ({why})"
    if library.level == "portable" and not forced:
        advice = "this processor has no AVX2, so products are slow"
        yield Finding("kernels", "warning", found, advice)
    else:
        yield Finding("kernels", "ok", found)


def _torch(report: torch_report.Report) -> Findings:
    if report.failure:
        advice = "install it again: pip install --force-reinstall torch"
        yield Finding("torch", "error", report.failure, advice)
        return
    yield Finding("torch", "ok", f"{report.version}, {report.threads} threads")
    yield Finding("GPU", "ok", "; ".join(report.gpus) or "none: it serves from the CPU")


def _memory() -> Findings:
    there, free = host_memory.total(), host_memory.available()
    limit = min((group.limit for group in host_memory.groups()), default=None)
    found = f"{size(free)} available"
    found += f" of {size(there)}" if there else ""
    found += f", {size(limit)} allowed by the control group" if limit else ""
    little = free < _LITTLE_MEMORY
    advice = "make room, or raise the container's limit; `rosellm plan` says what a model takes"
    yield Finding("memory", "warning" if little else "ok", found, advice * little)
    overcommit = Path("/proc/sys/vm/overcommit_memory")
    if overcommit.exists() and overcommit.read_text().strip() == "2":
        advice = "the KV cache counts from the start: bound it by --kv-cache-gb, or set it to 0"
        yield Finding("overcommit", "warning", "vm.overcommit_memory is 2", advice)


def _files(options: flags.Options | None) -> Findings:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _SPARE_FILES + (options.server.max_connections if options else 0)
    found = f"{'no limit' if soft == resource.RLIM_INFINITY else soft} open"
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        yield Finding("files", "ok", found)
        return
    more = "ulimit -n" if hard == resource.RLIM_INFINITY or hard >= wanted else "its hard limit"
    advice = f"--max-connections may take {wanted}: raise {more}, or lower that flag"
    yield Finding("files", "warning", found, advice)


def _disks() -> Findings:
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for name, folder, what in (
        ("cache", cache_root().parent, "quantised weights are made anew at each start"),
        ("hub cache", hub.expanduser(), "models named by a hub id cannot be downloaded"),
    ):
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not os.access(there, os.W_OK):
            found = f"{folder} cannot be written"
            yield Finding(name, "warning", found, f"{what}; make it writable, or name another")
            continue
        free = shutil.disk_usage(there).free
        little = free < _LITTLE_DISK
        advice = "make room: models take gigabytes"
        yield Finding(
            name, "warning" if little else "ok", f"{folder}, {size(free)} free", advice * little
        )


def _extras() -> Findings:
    said = [f"{what}: {'yes' if _is_installed(name) else 'no'}" for name, what in EXTRAS.items()]
    yield Finding("extras", "ok", ", ".join(said))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


# -- the flags -------------------------------------------------------------------------------


def _exposure(options: flags.Options) -> Findings:
    server = options.server
    try:
        keys = load_keys(server.api_key_file)
        listen.check_exposure(server, keys=bool(keys))
        check_tls(server)
    except RosellmError as error:
        advice = "correct the key file, certificate or address; 127.0.0.1 needs none of them"
        yield Finding("exposure", "error", str(error), advice)
        return
    asks = "asks for a key" if keys else "asks for no key"
    found = f"listens on {server.host}, {asks}, {'with' if server.tls_cert else 'without'} TLS"
    warning = exposure(server.api_key_file) if server.api_key_file else None
    if warning:
        yield Finding("exposure", "warning", found, warning)
    elif server.insecure and not keys:
        yield Finding("exposure", "warning", found, "whoever reaches the port may use it")
    else:
        yield Finding("exposure", "ok", found)


def _port(options: flags.Options) -> Findings:
    server = options.server
    try:
        listen.bind(server.host, server.port).close()
    except RosellmError as error:
        yield Finding("port", "error", str(error), "end the other program, or pass another --port")
        return
    yield Finding("port", "ok", f"{server.host}:{server.port} is free")


def _model(options: flags.Options, report: torch_report.Report) -> Findings:
    model = options.engine.model
    if options.names_hub:
        found = f"{model.model}: is downloaded by serve, if it is not in the cache"
        yield Finding("model", "ok", found)
        return
    try:
        check_checkpoint(model.model)
        tokenizer = load_tokenizer(model.tokenizer or model.model, model.chat_template)
        TextTools.of(tokenizer, model.tool_parser, model.reasoning_parser)
        load_defaults(model.model, options.sampling, tokenizer.eos_ids)
    except RosellmError as error:
        yield Finding("model", "error", str(error), "`rosellm inspect` says what the files hold")
        return
    if report.refusal:
        yield Finding("model", "error", report.refusal, "`rosellm plan` shows the arithmetic")
    elif report.fits:
        yield Finding("model", "ok", report.fits)
