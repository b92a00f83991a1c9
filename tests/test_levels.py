"""Rooms import only from rooms of their own level or below, and the API side never reaches torch.

Every import statement under ``rosellm`` is read with ``ast``: those inside functions and under
``TYPE_CHECKING`` count too. Imports by string (the registries') are not seen; they are lazy by
nature, and ``test_import_cost.py`` watches what they cost.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The level of every room, by module prefix; the longest prefix wins.
LEVELS = {
    "rosellm.roseinfer.config": 0,
    "rosellm.roseinfer.errors": 0,
    "rosellm.roseinfer.host_memory": 0,
    "rosellm.roseinfer.large_pages": 0,
    "rosellm.roseinfer.logs": 0,
    "rosellm.roseinfer.messages": 0,
    "rosellm.roseinfer.request": 0,
    "rosellm.roseinfer.step": 0,
    "rosellm.roseinfer.toml_file": 0,
    "rosellm.roseinfer.cache.blocks": 1,
    "rosellm.roseinfer.cache.manager": 1,
    "rosellm.roseinfer.demo": 1,
    "rosellm.roseinfer.grammar": 1,
    "rosellm.roseinfer.hub": 1,
    "rosellm.roseinfer.hub_errors": 1,
    "rosellm.roseinfer.hub_transfer": 1,
    "rosellm.roseinfer.scheduling": 1,
    "rosellm.roseinfer.speculation": 1,
    "rosellm.roseinfer.text": 1,
    "rosellm.roseinfer.attention": 2,
    "rosellm.roseinfer.cache.storage": 2,
    "rosellm.roseinfer.kernels": 2,
    "rosellm.roseinfer.layers": 2,
    "rosellm.roseinfer.loading": 2,
    "rosellm.roseinfer.models": 2,
    "rosellm.roseinfer.quant": 2,
    "rosellm.roseinfer.runner": 3,
    "rosellm.roseinfer.engine": 4,
    "rosellm.bench": 5,
    "rosellm.cli": 5,
    "rosellm.commands": 5,
    "rosellm.roseinfer.inference_engine": 5,
    "rosellm.roseinfer.llm": 5,
    "rosellm.roseinfer.server": 5,
    # the trainer stands apart: nothing imports it, and it takes nothing from the serving engine
    "rosellm.rosetrainer": 6,
    "rosellm.rosetrainer.commands": 5,
    "rosellm.rosetrainer.recipes": 7,
}
TORCH_LEVELS = {2, 3, 4, 6, 7}
# besides every module of the other levels
TORCH_FREE = {
    "rosellm.roseinfer.engine.client",
    "rosellm.roseinfer.engine.listener",
    "rosellm.roseinfer.engine.pace",
    "rosellm.roseinfer.engine.supervisor",
    "rosellm.roseinfer.kernels.cpu.build",
    "rosellm.roseinfer.kernels.cpu.cores",
    "rosellm.roseinfer.kernels.cpu.library",
    "rosellm.roseinfer.loading.open",
    "rosellm.roseinfer.loading.safetensors",
}
# Imports inside a function that may go where the rules would not let them.
LAZY_EDGES = {
    # the in-process client is the only one that needs the engine itself
    ("rosellm.roseinfer.engine.client", "rosellm.roseinfer.engine.build"),
    ("rosellm.roseinfer.engine.client", "rosellm.roseinfer.engine.loop"),
    # the checkpoint that only torch can read
    ("rosellm.roseinfer.loading.open", "rosellm.roseinfer.loading.torch_file"),
    # tensors are views of a mapping; a folder's config is read without
    ("rosellm.roseinfer.loading.safetensors", "rosellm.roseinfer.loading.mapped"),
    ("rosellm.roseinfer.loading.safetensors", "rosellm.roseinfer.loading.float8"),
    # comparing two models, and writing one, without an engine that serves
    ("rosellm.commands.verify", "rosellm.roseinfer.engine.compare"),
    ("rosellm.commands.quantize", "rosellm.roseinfer.engine.write"),
    ("rosellm.commands.passages", "rosellm.roseinfer.engine.passage"),
    # measuring the engine in this process, beside what machine and model allow at most
    ("rosellm.bench.offline", "rosellm.roseinfer.engine.build"),
    # looking at a model without running it
    ("rosellm.commands.model_facts", "rosellm.roseinfer.loading.open"),
    ("rosellm.commands.model_facts", "rosellm.roseinfer.loading.safetensors"),
    ("rosellm.commands.model_facts", "rosellm.roseinfer.runner.memory"),
    ("rosellm.commands.model_facts", "rosellm.roseinfer.runner.choices"),
    ("rosellm.commands.model_facts", "rosellm.roseinfer.runner.plan"),
    ("rosellm.commands.model_facts", "rosellm.roseinfer.runner.resolve"),
    # planning one: a process that holds what an engine's does, but for the weights
    ("rosellm.commands.plan", "rosellm.roseinfer.engine.build"),
    ("rosellm.commands.plan", "rosellm.roseinfer.runner.memory"),
    ("rosellm.commands.plan", "rosellm.roseinfer.runner.plan"),
    ("rosellm.commands.plan", "rosellm.roseinfer.runner.resolve"),
    # whether torch is well, in a process of its own
    ("rosellm.commands.torch_report", "torch"),
    ("rosellm.commands.torch_report", "rosellm.roseinfer.runner.memory"),
    ("rosellm.commands.torch_report", "rosellm.roseinfer.runner.plan"),
    ("rosellm.bench.ceilings", "torch"),
    ("rosellm.bench.machine", "torch"),
    ("rosellm.bench.cost", "torch"),
    ("rosellm.bench.cost", "rosellm.roseinfer.kernels.table"),
    ("rosellm.bench.cost", "rosellm.roseinfer.loading.open"),
    ("rosellm.bench.cost", "rosellm.roseinfer.models.registry"),
    ("rosellm.bench.cost", "rosellm.roseinfer.quant.formats"),
    ("rosellm.bench.cost", "rosellm.roseinfer.runner.resolve"),
    # training and exporting are what these commands are for
    ("rosellm.rosetrainer.commands", "rosellm.rosetrainer.export"),
    ("rosellm.rosetrainer.commands", "rosellm.rosetrainer.train"),
}
TORCH = ("torch", "triton", "safetensors.torch")
TRAINER = "rosellm.rosetrainer"
NEVER = ("transformers",)  # the tests' oracle


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    in_function: bool
    types_only: bool


@dataclass(frozen=True)
class Module:
    name: str
    is_package: bool
    imports: tuple[Import, ...]


Tree = Mapping[str, Module]


# -- reading ---------------------------------------------------------------------------------


def read_tree(root: Path) -> Tree:
    """Read all modules of the package ``rosellm`` in root, by dotted name."""
    sources: dict[str, tuple[bool, str]] = {}
    for path in sorted((root / "rosellm").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        sources[".".join(parts[:-1] if is_package else parts)] = (is_package, path.read_text())
    return {
        name: Module(name, is_package, tuple(find_imports(ast.parse(source), set(sources))))
        for name, (is_package, source) in sources.items()
    }


def find_imports(
    node: ast.AST, known: set[str], in_function: bool = False, types_only: bool = False
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for target in targets(child):
            yield Import(resolve(target, known), child.lineno, in_function, types_only)
        yield from find_imports(
            child,
            known,
            in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef),
            types_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)),
        )


def targets(node: ast.AST) -> list[str]:
    """Name what an import statement imports; ruff has refused relative imports (TID252)."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def resolve(target: str, known: set[str]) -> str:
    """Cut ``package.module.name`` down to the module, where it is one of ours."""
    name = target
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or target


# -- the rules -------------------------------------------------------------------------------


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def level(name: str) -> int | None:
    """Return the level of the room that a module is in, or None where none is declared."""
    rooms = [prefix for prefix in LEVELS if within(name, prefix)]
    return LEVELS[max(rooms, key=len)] if rooms else None


def highest_allowed(module: Module, found: Import) -> int:
    """An ``__init__`` runs before anything in its room, so at module level it stays at L0."""
    if module.is_package and not found.in_function:
        return 0
    return level(module.name) or 0


def undeclared(tree: Tree) -> list[str]:
    return [
        f"{m.name}: no level is declared for it in tests/test_levels.py"
        for m in tree.values()
        if not m.is_package and level(m.name) is None
    ]


def upward(tree: Tree) -> list[str]:
    return [
        f"{m.name}:{found.line} imports {found.target}, which is at L{level(found.target)}"
        for m in tree.values()
        for found in m.imports
        if found.target in tree
        and (level(found.target) or 0) > highest_allowed(m, found)
        and not is_lazy_edge(m, found)
    ]


def is_lazy_edge(module: Module, found: Import) -> bool:
    """A package may name its own modules if it fetches them lazily; other exceptions are listed."""
    if module.is_package and within(found.target, module.name):
        return found.in_function or found.types_only
    return found.in_function and (module.name, found.target) in LAZY_EDGES


def forbidden(tree: Tree) -> list[str]:
    return [
        f"{m.name}:{found.line} imports {found.target}: the package never does"
        for m in tree.values()
        for found in m.imports
        if any(within(found.target, name) for name in NEVER)
    ]


def torch_free(module: Module) -> bool:
    return module.is_package or level(module.name) not in TORCH_LEVELS or module.name in TORCH_FREE


def heavy(tree: Tree) -> list[str]:
    """Find torch-free modules that reach torch, directly or through what they import."""
    return [
        f"{m.name}:{found.line} reaches torch: {' -> '.join(chain)}"
        for m in tree.values()
        if torch_free(m)
        for found in m.imports
        if not found.types_only and not is_lazy_edge(m, found)
        if (chain := path_to_torch(tree, found.target))
    ]


def path_to_torch(tree: Tree, start: str) -> list[str]:
    """Follow the imports that run when ``start`` is imported; return the way to torch or []."""
    ways = [[start]]
    seen = set()
    while ways:
        way = ways.pop(0)
        name = way[-1]
        if any(within(name, heavy_name) for heavy_name in TORCH):
            return way
        if name in seen or name not in tree:
            continue
        seen.add(name)
        ways += [[*way, parent] for parent in tree if name.startswith(f"{parent}.")]
        ways += [
            [*way, found.target]
            for found in tree[name].imports
            if not found.in_function and not found.types_only
        ]
    return []


def entangled(tree: Tree) -> list[str]:
    """Find where the trainer, but for its recipes, uses more of the engine than L0 and L1."""
    return [
        f"{m.name}:{found.line} imports {found.target}: training is apart from serving"
        for m in tree.values()
        if within(m.name, TRAINER) and not within(m.name, f"{TRAINER}.recipes")
        for found in m.imports
        if within(found.target, "rosellm.roseinfer") and (level(found.target) or 0) > 1
    ]


RULES = (undeclared, upward, forbidden, heavy, entangled)


# -- the tests -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package() -> Tree:
    return read_tree(ROOT)


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_rule(rule, package):
    assert rule(package) == []


def test_every_lazy_edge_is_still_needed(package):
    edges = {(m.name, found.target) for m in package.values() for found in m.imports}
    assert edges >= LAZY_EDGES


HOUSE = "rosellm/roseinfer"
BREACHES = [
    (undeclared, {"rosellm/stray.py": ""}),
    (
        upward,
        {f"{HOUSE}/config.py": "import rosellm.cli", "rosellm/cli.py": ""},
    ),
    (
        upward,
        {f"{HOUSE}/scheduling/turns.py": "def f():\n  import rosellm.cli", "rosellm/cli.py": ""},
    ),
    (
        upward,
        {
            f"{HOUSE}/text/stop.py": "if TYPE_CHECKING:\n  from rosellm import cli",
            "rosellm/cli.py": "",
        },
    ),
    (
        upward,
        {
            f"{HOUSE}/layers/__init__.py": f"from {HOUSE.replace('/', '.')}.layers.linear import L",
            f"{HOUSE}/layers/linear.py": "",
        },
    ),
    (forbidden, {f"{HOUSE}/models/llama.py": "def f():\n  from transformers import AutoModel"}),
    (heavy, {f"{HOUSE}/server/app.py": "import torch.nn"}),
    (heavy, {f"{HOUSE}/llm.py": "def f():\n  from safetensors.torch import load_file"}),
    (heavy, {f"{HOUSE}/runner/__init__.py": "import torch"}),
    (
        heavy,
        {
            f"{HOUSE}/server/app.py": "from rosellm.roseinfer.layers import linear",
            f"{HOUSE}/layers/linear.py": "import torch",
        },
    ),
    (
        entangled,
        {
            "rosellm/rosetrainer/model.py": "from rosellm.roseinfer.models import llama",
            f"{HOUSE}/models/llama.py": "",
        },
    ),
]


def write(root: Path, sources: dict[str, str]) -> Tree:
    for name, source in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for package in path.relative_to(root).parents:
            if package != Path("."):
                (root / package / "__init__.py").touch()
        path.write_text(source)
    return read_tree(root)


@pytest.mark.parametrize(("rule", "sources"), BREACHES)
def test_a_breach_is_found(rule, sources, tmp_path):
    tree = write(tmp_path, sources)
    assert [other.__name__ for other in RULES if other(tree)] == [rule.__name__]


def test_lazy_imports_of_a_package_and_types_cost_nothing(tmp_path):
    sources = {
        "rosellm/__init__.py": "if TYPE_CHECKING:\n  from rosellm.roseinfer import llm\n"
        "def __getattr__(name):\n  from rosellm.roseinfer import llm",
        f"{HOUSE}/llm.py": "if TYPE_CHECKING:\n  import torch",
    }
    tree = write(tmp_path, sources)
    assert not any(rule(tree) for rule in RULES)
