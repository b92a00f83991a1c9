"""Models named by a hub id, ``org/name[@revision]``, brought into the Hugging Face cache.

Only what serving needs is downloaded. ``huggingface_hub`` keeps the cache and talks to the hub,
so its variables count: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT. It is imported only when a
hub id is really asked for. Of what is in the files, only the index of the weights is known here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rosellm.roseinfer.config import ModelConfig
from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.hub_errors import explain
from rosellm.roseinfer.hub_transfer import OnProgress, fetch
from rosellm.roseinfer.messages import Progress
from rosellm.roseinfer.text.tokenizer_files import tokenizer_files

Want = Literal["model", "description", "tokenizer"]
"""All of a model; all but its weights; what turns text into token ids."""

Check = Callable[[Mapping[str, Any]], None]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

DESCRIPTION = (
    CONFIG,
    "generation_config.json",
    "modules.json",  # this and the next: how a sentence-transformers model pools
    "1_Pooling/config.json",
)
_OTHER_WEIGHTS = {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".h5", ".msgpack"}
_NAME = re.compile(r"(?P<repo>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
_FILES = (".pt", ".pth", ".bin", ".gguf", ".safetensors", ".json", ".model", ".tiktoken")
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class HubName:
    """A repository on the hub; ``revision`` is a branch, a tag or a commit hash."""

    repo: str
    revision: str | None = None


def hub_name(source: str) -> HubName | None:
    """What ``source`` names on the hub, or None where it is a path.

    What exists here is a path, and so is what can be nothing else: ``./x``, ``~/x``, ``x.pt``.

    >>> hub_name("org/name@v1")
    HubName(repo='org/name', revision='v1')
    >>> hub_name("./org/name"), hub_name("one/two/three"), hub_name("last.pt")
    (None, None, None)
    """
    match = _NAME.fullmatch(source)
    if match is None or source.endswith(_FILES) or os.path.exists(source):
        return None
    return HubName(match["repo"], match["revision"])


def model_name(source: str) -> str:
    """What a model is called where nobody says otherwise.

    >>> model_name("org/name@v1"), model_name("./models/mine/"), model_name("x/last.pt")
    ('org/name', 'mine', 'last')
    """
    name = hub_name(source)
    return name.repo if name else Path(os.path.abspath(source)).name.removesuffix(".pt")


def local_model(
    source: str,
    on_progress: OnProgress = lambda _: None,
    check: Check = lambda _: None,
) -> str:
    """A model's local folder or file: ``source`` itself, or what is downloaded for it.

    Args:
        source: a path, or a hub id with an optional ``@revision``.
        on_progress: told how many bytes are here; called from the threads that fetch them.
        check: given the model's config before its weights are fetched; raises ModelError where
            they would be of no use.

    Raises:
        ModelError: the hub has no such model or does not give it, and the cache does not hold it;
            one or two lines that say what to do.
    """
    return _local(source, "model", on_progress, check)


def local_tokenizer(source: str, on_progress: OnProgress = lambda _: None) -> str:
    """As ``local_model``, of the tokenizer's files only."""
    return _local(source, "tokenizer", on_progress)


def local_description(source: str, on_progress: OnProgress = lambda _: None) -> str:
    """As ``local_model``, but the weights are there only if they have been downloaded before."""
    return _local(source, "description", on_progress)


def with_local_files(
    model: ModelConfig,
    on_progress: OnProgress = lambda _: None,
    check: Check = lambda _: None,
) -> ModelConfig:
    """The same config with local paths for the model and for its tokenizer: ``local_model``."""
    tokenizer = model.tokenizer and local_tokenizer(model.tokenizer, on_progress)
    return replace(model, model=local_model(model.model, on_progress, check), tokenizer=tokenizer)


def holds_model(folder: Path) -> bool:
    """Whether a folder has a config and all weights. Raises ModelError for a damaged index."""
    return all(os.path.isfile(folder / file) for file in [CONFIG, *_weight_files(folder)])


def _local(source: str, want: Want, on_progress: OnProgress, check: Check = lambda _: None) -> str:
    name = hub_name(source)
    if name is None:
        return source
    from huggingface_hub.utils import logging

    # What matters is said in our own words.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    on_progress(Progress(f"asking the hub for {name.repo}"))
    try:
        return str(_find(name, want, on_progress, check))
    except ModelError:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries
        raise ModelError(explain(name.repo, name.revision, error)) from error


def _find(name: HubName, want: Want, on_progress: OnProgress, check: Check) -> Path:
    try:
        commit, sizes = _listing(name)
    except Exception:
        folder = _cached(name, want)
        if folder is None:
            raise
        return folder
    return _Download(name, commit, sizes, on_progress).run(want, check)


def _listing(name: HubName) -> tuple[str, dict[str, int]]:
    """The commit that ``name`` stands for, and the bytes of every file in it."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(
        name.repo, revision=name.revision, files_metadata=True, timeout=_TIMEOUT_S
    )
    assert info.sha is not None, "the hub says which commit it speaks of"
    return info.sha, {file.rfilename: file.size or 0 for file in info.siblings or ()}


# -- what is wanted --------------------------------------------------------------------------


def _small_files(name: HubName, want: Want, available: Collection[str]) -> list[str]:
    """Everything but the weights, of what the repository has."""
    files = tokenizer_files(available)
    if want == "tokenizer":
        if not files:
            raise ModelError(f"{name.repo} on the hub has no tokenizer in a form that is known")
        return files
    if CONFIG not in available:
        raise ModelError(f"{name.repo} on the hub has no {CONFIG}: it is not a model to be served")
    if want == "model" and not {WEIGHTS, INDEX} & set(available):
        raise ModelError(no_weights(f"{name.repo} on the hub", available))
    index = [INDEX] if INDEX in available else []
    return [*(file for file in DESCRIPTION if file in available), *index, *files]


def no_weights(place: str, available: Iterable[str]) -> str:
    """What to say of a folder or repository that has none to be read, by its files' names."""
    kinds = sorted({Path(file).suffix for file in available} & _OTHER_WEIGHTS)
    found = f"its weights are {' and '.join(kinds)} files" if kinds else "nor any other weights"
    return (
        f"{place} has no {WEIGHTS} or index of several, {found}:"
        " look for the same model with safetensors"
    )


def _weight_files(folder: Path) -> list[str]:
    """The files that the index lists, or the only one there is."""
    index = folder / INDEX
    if not index.is_file():
        return [WEIGHTS]
    try:
        files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelError(f"{index}: not a readable index of weight files") from None
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise ModelError(f"{index}: {shown(repr(file))} is not a file of this folder")
    return files


def _read_config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return value


# -- the cache -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Download:
    """Brings a commit's files into the cache; ``sizes`` are those of all that it has."""

    name: HubName
    commit: str
    sizes: Mapping[str, int]
    on_progress: OnProgress

    def run(self, want: Want, check: Check) -> Path:
        """Fetch what is wanted and not there yet; return the commit's folder in the cache."""
        files = _small_files(self.name, want, self.sizes)
        self._get(files, "all but the weights")
        folder = _folder(self.name.repo, self.commit, files[0])
        assert folder is not None, "its files have just been fetched"
        if want == "model":
            check(_read_config(folder / CONFIG))
            self._get(_weight_files(folder), "weights")
        _note_commit(self.name, files[0])
        return folder

    def _get(self, files: Iterable[str], what: str) -> None:
        repo = self.name.repo
        for file in files:
            if file not in self.sizes:
                raise ModelError(f"{repo} on the hub lacks {shown(file)}, which its {INDEX} lists")
        absent = [file for file in files if _folder(repo, self.commit, file) is None]
        sizes = {file: self.sizes[file] for file in absent}
        fetch(repo, self.commit, sizes, f"downloading {repo}, {what}", self.on_progress)


def _cached(name: HubName, want: Want) -> Path | None:
    """The folder of an earlier download, if what is wanted is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                name.repo, revision=name.revision, local_files_only=True, allow_patterns=[]
            )
        )
    except LocalEntryNotFoundError:
        return None
    return folder if _holds(folder, want) else None


def _holds(folder: Path, want: Want) -> bool:
    if want == "tokenizer":
        return bool(tokenizer_files(path.name for path in folder.iterdir()))
    return holds_model(folder) if want == "model" else (folder / CONFIG).is_file()


def _folder(repo: str, revision: str | None, file: str) -> Path | None:
    """The cache's folder of a revision, if it has this file."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file, revision=revision)
    return Path(found).parents[file.count("/")] if isinstance(found, str) else None


def _note_commit(name: HubName, file: str) -> None:
    """Let the cache know which commit the revision is, for when the hub is out of reach."""
    from huggingface_hub import hf_hub_download

    if _folder(name.repo, name.revision, file) is None:
        hf_hub_download(name.repo, file, revision=name.revision)
