"""``rosellm models``: the architectures that are supported, and the models in the hub's cache."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosellm.commands.tables import show_list, size
from rosellm.roseinfer.hub import CONFIG, INDEX, WEIGHTS
from rosellm.roseinfer.models.registry import ARCHITECTURES
from rosellm.roseinfer.server import flags

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo

EXAMPLES = """\
A model in the cache is served by its name, without the network: rosellm serve org/name
To see more of one: rosellm inspect org/name
"""


def add_flags(command: flags.Parser) -> None:
    """Add the flags of ``rosellm models``: it has none."""
    command.formatter_class = flags.Help
    command.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    """Show both lists. Returns the exit code."""
    show_list("Supported architectures", ("in config.json", "what it is"), supported())
    show_cache()
    return 0


def supported() -> Iterator[tuple[str, str]]:
    """Every name in the registry; a line about a module stands at the first of its names."""
    modules = [target.partition(":")[0] for target in ARCHITECTURES.values()]
    for place, (name, module) in enumerate(zip(ARCHITECTURES, modules, strict=True)):
        yield name, summary(module) if modules.index(module) == place else ""


def summary(module: str) -> str:
    """The first sentence of a module's docstring, without the papers; the module is not run."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, "the registry names modules that are there"
    assert spec.origin is not None
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    words = re.sub(r"\s*\((arXiv:[^)]*)\)", "", " ".join(text.split("\n\n")[0].split()))
    return re.split(r"\.\s|\.$", words)[0]


def show_cache() -> None:
    """A line for each revision of each model in the hub's cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE

    title = f"In the cache, {HF_HUB_CACHE}"
    try:
        found = scan_cache_dir()
    except CacheNotFound:
        print(f"{title}: nothing yet")
        return
    models = sorted((repo for repo in found.repos if repo.repo_type == "model"), key=_name)
    rows = [row(repo, revision) for repo in models for revision in _revisions(repo)]
    if not rows:
        print(f"{title}: no models yet")
        return
    show_list(title, ("model", "revision", "size", "architecture", "dtype", "can be served"), rows)


def row(repo: CachedRepoInfo, revision: CachedRevisionInfo) -> tuple[str, ...]:
    """What the cache has of one revision, and whether that can be served."""
    refs = ", ".join(sorted(revision.refs))
    name = revision.commit_hash[:8] + (f" ({refs})" if refs else "")
    config = _config(revision.snapshot_path)
    architecture, dtype = _said(config, "architectures"), _said(config, "dtype", "torch_dtype")
    verdict = _verdict(revision, architecture)
    return repo.repo_id, name, size(revision.size_on_disk), architecture, dtype, verdict


def _verdict(revision: CachedRevisionInfo, architecture: str) -> str:
    files = {str(file.file_path.relative_to(revision.snapshot_path)) for file in revision.files}
    if CONFIG not in files:
        return "no: it has no config.json"
    if architecture not in ARCHITECTURES:
        return "no: the architecture is not supported"
    if files.isdisjoint({WEIGHTS, INDEX}):
        return "its weights are not here yet"
    return "yes"


def _config(folder: Path) -> dict[str, Any]:
    try:
        value = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _said(config: dict[str, Any], *keys: str) -> str:
    """The first of these keys that says something; of a list its first entry."""
    for key in keys:
        value = config.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str):
            return value
    return "-"


def _name(repo: CachedRepoInfo) -> str:
    return repo.repo_id.lower()


def _revisions(repo: CachedRepoInfo) -> Iterator[CachedRevisionInfo]:
    """The latest first."""
    yield from sorted(repo.revisions, key=lambda revision: -revision.last_modified)
