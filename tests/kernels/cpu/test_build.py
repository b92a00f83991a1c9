"""How the kernels are compiled, with a compiler that only writes down what it is asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns, which

import pytest

from rosellm.roseinfer.kernels.cpu import build
from rosellm.roseinfer.kernels.cpu.library import Library, open_library

LEVELS = ["portable", "avx2", "avx2_vnni", "avx512", "avx512_bf16", "amx"]  # the lowest first

ROOT = Path(__file__).parents[3]
COMPILER = """#!/bin/sh
case "$*" in *$UNKNOWN_FLAG*) echo "unrecognized: $UNKNOWN_FLAG" >&2; exit 1;; esac
case "$*" in *" /dev/null "*) ;; *) echo "$@" >> "{log}";; esac
while [ "$1" != -o ]; do shift; done
echo built > "$2"
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a compiler in place that works in no time; return the file with its command lines.

    Those that only ask whether it knows a flag are left out. It knows all but $UNKNOWN_FLAG.
    """
    log = tmp_path / "log"
    compiler = tmp_path / "a compiler"
    compiler.write_text(COMPILER.format(log=log))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{compiler}' -march=this")
    monkeypatch.setenv("UNKNOWN_FLAG", "no such flag")
    return log


def test_the_library_is_up_to_date_until_a_source_changes(tmp_path):
    library = tmp_path / "library"
    assert not build.up_to_date(library)
    library.touch()
    newest = max(path.stat().st_mtime for path in build.HERE.iterdir() if path.is_file())
    os.utime(library, (newest, newest))
    assert build.up_to_date(library)
    oldest = (build.HERE / "api.cpp").stat().st_mtime - 1
    os.utime(library, (oldest, oldest))
    assert not build.up_to_date(library)


@pytest.mark.parametrize(
    ("machine", "unknown", "levels"),
    [
        ("x86_64", "no such flag", LEVELS),
        ("x86_64", "-mamx-bf16", LEVELS[:5]),
        ("x86_64", "-mavx512bf16", LEVELS[:4]),
        ("x86_64", "-mavx512vnni", LEVELS[:3]),
        ("x86_64", "-mavxvnni", ["portable", "avx2", "avx512", "avx512_bf16", "amx"]),
        ("x86_64", "-mf16c", ["portable"]),
        ("arm64", "no such flag", ["portable"]),
    ],
)
def test_levels_of_the_machine_that_the_compiler_knows_are_compiled_and_the_lowest_linked_first(
    log, tmp_path, monkeypatch, capsys, machine, unknown, levels
):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setenv("UNKNOWN_FLAG", unknown)
    build.build(tmp_path / "new" / "library.so", ("-fextra",))
    assert (tmp_path / "new" / "library.so").read_text() == "built\n"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["library.so"]
    *compiled, linked = log.read_text().splitlines()
    assert all(line.startswith("-march=this -") for line in [*compiled, linked])
    assert all(" -fextra " in line for line in [*compiled, linked])
    assert sum("level.cpp" in line for line in compiled) == len(levels)
    [api] = [line for line in compiled if "api.cpp" in line]
    for level in LEVELS:
        assert (f" -DROSE_HAS_{level.upper()} " in api) == (level in levels)
    assert ("which is left out" in capsys.readouterr().err) == (unknown.startswith("-"))
    objects = [Path(word).stem for word in linked.split() if word.endswith(".o")]
    assert objects == [*build.ONCE, *levels]


def test_what_the_compiler_says_is_told_and_the_old_library_stays(tmp_path, monkeypatch):
    library = tmp_path / "library.so"
    library.write_text("old")
    monkeypatch.setenv("CXX", "sh -c 'echo this is wrong >&2; exit 1'")
    with pytest.raises(RuntimeError, match=r"^sh fails\n(.|\n)*this is wrong"):
        build.build(library)
    assert library.read_text() == "old"
    assert list(tmp_path.iterdir()) == [library]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"PATH": "", "CXX": ""}, "error: no C++ compiler: install g++ or clang++"),
        ({"CXX": "/no/such/compiler"}, "error: the C++ compiler does not start"),
    ],
)
def test_without_a_compiler_the_command_says_so(tmp_path, settings, message):
    done = build_command("--out", str(tmp_path / "library"), settings=settings)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_the_command_builds_once(log, tmp_path):
    """It is run as a file, by a Python that knows nothing of rosellm."""
    command = ("--out", str(tmp_path / "library.so"))
    assert build_command(*command).stdout == f"{tmp_path}/library.so\n"
    once = len(log.read_text().splitlines())
    assert build_command(*command).stdout == f"{tmp_path}/library.so\n"
    assert len(log.read_text().splitlines()) == once
    build_command(*command, "--force")
    build_command(*command, "--", "-fsanitize=address")
    assert len(log.read_text().splitlines()) == 3 * once
    assert log.read_text().count("-fsanitize=address") == once


def build_command(*arguments: str, settings: dict[str, str] | None = None):
    return subprocess.run(
        [sys.executable, "-I", "-S", str(build.HERE / "build.py"), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | (settings or {}),
    )


@pytest.mark.slow
@pytest.mark.parametrize("levels", range(1, len(LEVELS) + 1))
def test_a_compiler_makes_a_library_that_loads(tmp_path, monkeypatch, levels):
    """With all levels, or those that an old compiler leaves."""
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(build, "LEVELS", dict([*build.LEVELS.items()][:levels]))
    build.build(tmp_path / "library.so", ("-O0", "-Werror"))
    library = open_library(tmp_path / "library.so")
    assert isinstance(library, Library)
    assert library.set_level("avx512") in (False, levels > LEVELS.index("avx512"))


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_reached_through_constants_alone(tmp_path, level):
    """Code of a level must not run before it is known that the processor has it.

    A function that filled in a level's table once ran, with that level's instructions, whenever the
    library was loaded: on a processor without them that ended the process.
    """
    command, nm = build.compiler(), which("nm")
    if command is None or nm is None or (level != "portable" and platform.machine() != "x86_64"):
        pytest.skip("no C++ compiler, no nm, or another kind of processor")
    target = tmp_path / "level.o"
    flags = [
        *build.COMMON,
        "-O0",
        *build.LEVELS[level],
        "-c",
        build.HERE / "level.cpp",
        "-o",
        target,
    ]
    subprocess.run([*command, *flags], check=True)
    listed = subprocess.run([nm, "-P", target], check=True, capture_output=True, text=True)
    symbols = [line.split()[:2] for line in listed.stdout.splitlines()]
    assert not [name for name, _ in symbols if name.startswith("_GLOBAL__")]  # constructors
    assert [name for name, kind in symbols if kind in "DR"]  # the table
    assert not [name for name, kind in symbols if kind == "T"]  # functions for others to call


# -- the package -----------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of what the package's build reads, without a library."""
    project = tmp_path / "project"
    room = build.HERE.relative_to(ROOT)
    copytree(build.HERE, project / room, ignore=ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        copy(ROOT / name, project)
    copy(ROOT / "rosellm" / "__init__.py", project / "rosellm")
    return project


def build_wheel(project: Path, version: str = "standard") -> tuple[str, set[str]]:
    """Build a wheel; return its name and those of the files in it."""
    wheel = pytest.importorskip("hatchling.builders.wheel")
    [built] = wheel.WheelBuilder(str(project)).build(
        directory=str(project / "dist"), versions=[version]
    )
    with zipfile.ZipFile(built) as files:
        return Path(built).name, set(files.namelist())


LIBRARY = str(build.LIBRARY.relative_to(ROOT))
SOURCE = str((build.HERE / "api.cpp").relative_to(ROOT))


def test_a_wheel_carries_the_library_and_names_its_platform(log, project):
    name, files = build_wheel(project)
    assert "-py3-none-" in name
    assert not name.endswith("-any.whl")
    assert {LIBRARY, SOURCE} <= files


def test_an_editable_install_builds_in_place(log, project):
    settings = project / "pyproject.toml"  # without this, hatchling needs another package
    packages = 'packages = ["rosellm"]'
    settings.write_text(
        settings.read_text().replace(packages, f'{packages}\ndev-mode-dirs = ["."]')
    )
    _, files = build_wheel(project, "editable")
    assert (project / LIBRARY).read_text() == "built\n"
    assert LIBRARY not in files


def test_without_a_compiler_the_wheel_is_for_any_platform(project, monkeypatch, capfd):
    monkeypatch.setenv("CXX", "false")
    name, files = build_wheel(project)
    assert name.endswith("-py3-none-any.whl")
    assert SOURCE in files
    assert LIBRARY not in files
    out, err = capfd.readouterr()
    assert "rosellm is built without native CPU kernels: false fails\n" in out + err


def test_a_release_is_not_built_without_the_kernels(project, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("ROSELLM_BUILD_NATIVE", "require")
    with pytest.raises(RuntimeError, match="false fails"):
        build_wheel(project)
