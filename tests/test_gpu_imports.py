"""``make gpu`` needs torch, Triton and the wheels that ``docs/cuda.md`` names, and nothing else.

What is imported when a module is, is read with ``ast``, through all of our own modules that it
imports: a missing package would be an error of the whole run there. Imports inside functions are
not followed; a test that has some skips where they fail.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("rosellm", "tests", "benchmarks")
GIVEN = {"torch", "triton", "starlette", "typing_extensions"}
"""The machine's own, and what the wheels bring with them."""


def wheels() -> set[str]:
    """Import names of the packages in the page's ``pip download``."""
    page = (ROOT / "docs" / "cuda.md").read_text()
    [listed] = re.findall(r"--dest wheels \\\n(.*?)\n#", page, re.DOTALL)
    return {name.replace("-", "_") for name in listed.replace("\\", " ").split()}


def statements(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Those that run when the module is imported."""
    for each in body:
        if isinstance(each, ast.Import | ast.ImportFrom):
            yield each
        elif isinstance(each, ast.If) and "TYPE_CHECKING" in ast.dump(each.test):
            yield from statements(each.orelse)
        elif isinstance(each, ast.If | ast.With | ast.ClassDef):
            yield from statements(each.body)
            yield from statements(getattr(each, "orelse", []))


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def imported(file: Path) -> set[str]:
    """Modules by their full names; a package's parents too."""
    package = ".".join(file.relative_to(ROOT).parent.parts)
    found = set()
    for each in statements(ast.parse(file.read_text()).body):
        if isinstance(each, ast.Import):
            found |= {alias.name for alias in each.names}
            continue
        name = importlib.util.resolve_name("." * each.level + (each.module or ""), package)
        found |= {name, *(f"{name}.{alias.name}" for alias in each.names)}
    return {
        ".".join(parts[: i + 1])
        for n in found
        if (parts := n.split("."))
        for i in range(len(parts))
    }


def foreign(file: Path) -> dict[str, Path]:
    """Packages that are not ours, each with a file that imports it."""
    seen, waiting, found = {file}, [file], {}
    while waiting:
        here = waiting.pop()
        for name in imported(here):
            root = name.partition(".")[0]
            if root not in OURS:
                found[root] = here
            elif (there := file_of(name)) is not None and there not in seen:
                seen.add(there)
                waiting.append(there)
    return found


def test_the_card_needs_what_the_page_names() -> None:
    roots = [*(ROOT / "tests" / "gpu").glob("test_*.py"), ROOT / "tests" / "conftest.py"]
    assert len(roots) > 5
    allowed = {*wheels(), *GIVEN, *sys.stdlib_module_names}
    assert "pytest" in allowed
    assert "openai" not in allowed
    for file in [*roots, ROOT / "benchmarks" / "gpu.py"]:
        strangers = {name: by for name, by in foreign(file).items() if name not in allowed}
        assert not strangers, f"{file.name} needs {strangers}"


def test_what_is_far_away_is_found() -> None:
    """That the walk sees a client which a test imports by way of another file."""
    found = foreign(ROOT / "tests" / "models" / "test_encoder.py")
    assert {"openai", "torch", "numpy", "pytest"} <= set(found)
