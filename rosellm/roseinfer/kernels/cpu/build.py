"""Compiles the native kernels into one shared library beside this file.

    python -m rosellm.roseinfer.kernels.cpu.build

The package's build calls it where a C++ compiler is found; it imports nothing of rosellm, so that
it can run before anything is installed. ``level.cpp`` is compiled once for every dispatch level.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = HERE / "_rosellm_cpu.so"
COMMON = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread",
          "-Wall", "-Wextra", "-Werror=return-type")  # fmt: skip
ONCE = ("api.cpp", "pool.cpp", "program.cpp")
INTERFACE = ("api.cpp", "kernels.h", "program.h")
_AVX2 = ("-DROSE_AVX2", "-mavx2", "-mfma", "-mf16c")
_AVX512 = ("-DROSE_AVX512", "-DROSE_VNNI", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq",
           "-mavx512vnni", "-mfma", "-mf16c")  # fmt: skip
_AVX512_BF16 = (*_AVX512, "-DROSE_BF16", "-mavx512bf16")
# From the lowest to the highest, see _link.
LEVELS: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": _AVX2,
    "avx2_vnni": (*_AVX2, "-DROSE_VNNI", "-mavxvnni"),
    "avx512": _AVX512,
    "avx512_bf16": _AVX512_BF16,
    "amx": (*_AVX512_BF16, "-DROSE_AMX", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
}


def compiler() -> list[str] | None:
    """The C++ compiler: ``$CXX``, or the first one found."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [found] if found else None


def up_to_date(library: Path = LIBRARY) -> bool:
    """Whether the library is there, and no source has changed since it was built."""
    if not library.exists():
        return False
    built = library.stat().st_mtime
    sources = [path for path in HERE.iterdir() if path.suffix in (".cpp", ".h", ".inl")]
    return all(path.stat().st_mtime <= built for path in [*sources, Path(__file__)])


def interface() -> str:
    """A digest of the sources that say how Python and the library talk to each other.

    It is compiled into the library: one that is left from other sources would be called wrongly.
    """
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in INTERFACE))
    return digest.hexdigest()[:16]


def build(out: Path = LIBRARY, flags: tuple[str, ...] = ()) -> None:
    """Compile and link everything, and put the library in its place in one go.

    A process that has the old library loaded keeps it.

    Args:
        flags: more flags for compiler and linker, for sanitizers.

    Raises:
        RuntimeError: there is no compiler, or it complains.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("no C++ compiler: install g++ or clang++, or name one in CXX")
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=out.parent) as scratch:
        linked = Path(scratch) / out.name
        define = f'-DROSE_INTERFACE="{interface()}"'
        objects = _compile([*command, *COMMON, define, *flags], Path(scratch))
        _link([*command, "-shared", "-pthread", *flags], objects, linked)
        os.utime(linked, (started, started))  # older than what changes in the meantime
        os.replace(linked, out)


def _compile(command: list[str], scratch: Path) -> list[Path]:
    levels = _levels(command, scratch)
    there = tuple(f"-DROSE_HAS_{level.upper()}" for level in levels)
    jobs: list[tuple[str, str, tuple[str, ...]]] = [(name, name, there) for name in ONCE]
    jobs += [(level, "level.cpp", LEVELS[level]) for level in levels]

    def compile_one(job: tuple[str, str, tuple[str, ...]]) -> Path:
        name, source, flags = job
        target = scratch / f"{name}.o"
        _run([*command, *flags, "-c", str(HERE / source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, jobs))


def _levels(command: list[str], scratch: Path) -> list[str]:
    """The levels that this kind of processor has and the compiler knows.

    x86 alone has some to choose from: what is beyond the portable one elsewhere, as NEON is,
    belongs to every processor of that kind.
    """
    nothing = ("-c", "-x", "c++", os.devnull, "-o", str(scratch / "nothing.o"))
    _run([*command, *nothing])
    levels = ["portable"]
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return levels
    for level in list(LEVELS)[1:]:
        try:
            _run([*command, *LEVELS[level], *nothing])
        except RuntimeError:
            print(
                f"{command[0]} does not know the level {level}, which is left out", file=sys.stderr
            )
        else:
            levels.append(level)
    return levels


def _link(command: list[str], objects: list[Path], out: Path) -> None:
    """Link the objects in their order, lowest level first.

    Inline functions of the standard library are compiled into every object that uses them, and
    the linker keeps the first copy: so it is one that every processor can run.
    """
    _run([*command, *map(str, objects), "-o", str(out)])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"the C++ compiler does not start: {error}") from None
    if done.returncode:
        raise RuntimeError(f"{command[0]} fails\n{shlex.join(command)}\n{done.stderr}")
    print(done.stderr, end="", file=sys.stderr)  # warnings


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rosellm.roseinfer.kernels.cpu.build",
        description="Compile the native CPU kernels, if a source has changed.",
    )
    parser.add_argument("--out", type=Path, default=LIBRARY, help="where the library goes")
    parser.add_argument("--force", action="store_true", help="even if no source has changed")
    parser.add_argument("flags", nargs="*", help="after --: more flags for compiler and linker")
    options = parser.parse_args()
    if options.force or options.flags or not up_to_date(options.out):
        try:
            build(options.out, tuple(options.flags))
        except (RuntimeError, OSError) as error:
            sys.exit(f"error: {error}")
    print(options.out)


if __name__ == "__main__":
    main()
