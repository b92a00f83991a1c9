"""Brings files of one repository into the Hugging Face cache, several at a time.

``huggingface_hub`` fetches each of them. Its own way to fetch many waits, when interrupted, until
the files under way are finished, which can be gigabytes: so the threads are ours.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.messages import Progress

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

OnProgress = Callable[[Progress], None]

THREAD_NAME = "hub-download"
_THREADS = 4  # a large file is itself fetched in parallel where the hub can
_LOOK_S = 0.2  # how long a Ctrl-C may wait that came just before a wait for the threads


def fetch(
    repo: str, commit: str, sizes: Mapping[str, int], phase: str, on_progress: OnProgress
) -> None:
    """Fetch files into the cache.

    Args:
        commit: hash of the commit to take them from.
        sizes: bytes of each file, by its path in the repository.
        phase: what the progress is called.
        on_progress: called from the threads that fetch, one at a time.

    Raises:
        ModelError: the disk has no room for them.
        Exception: whatever ``huggingface_hub`` raises; ``hub_errors`` knows what it means.
    """
    if not sizes:
        return
    _check_disk(repo, sum(sizes.values()))
    tally = _Tally(phase, sizes, on_progress)
    files: queue.SimpleQueue[str] = queue.SimpleQueue()
    results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for file in sizes:
        files.put(file)
    work = (repo, commit, files, results, tally)
    for _ in range(min(_THREADS, len(sizes))):
        # Daemons: a program that is told to end does not wait for the rest of a file.
        threading.Thread(target=_fetch_each, args=work, name=THREAD_NAME, daemon=True).start()
    try:
        for _ in sizes:
            if (error := _next(results)) is not None:
                raise error
    finally:
        tally.stopped = True


def _next(results: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    """The next result. A signal that comes between Python's last look for one and the wait itself
    does not end that wait, so no wait is long."""
    while True:
        with contextlib.suppress(queue.Empty):
            return results.get(timeout=_LOOK_S)


def _fetch_each(
    repo: str,
    commit: str,
    files: queue.SimpleQueue[str],
    results: queue.SimpleQueue[BaseException | None],
    tally: _Tally,
) -> None:
    from huggingface_hub import hf_hub_download

    try:
        while not tally.stopped:
            file = files.get_nowait()
            hf_hub_download(repo, file, revision=commit, tqdm_class=tally.bar(file))
            tally.complete(file)
            results.put(None)
    except queue.Empty:
        pass
    except BaseException as error:  # whatever it is, the one who waits must hear of it
        results.put(error)


class _Tally:
    """Bytes of several files, told as one progress."""

    def __init__(self, phase: str, sizes: Mapping[str, int], on_progress: OnProgress) -> None:
        self._phase = phase
        self._sizes = sizes
        self._on_progress = on_progress
        self._done = dict.fromkeys(sizes, 0)
        self._lock = threading.Lock()
        self.stopped = False

    def count(self, file: str, done: int) -> None:
        """Say that so many bytes of a file are here. Once stopped, ends the thread that says so."""
        if self.stopped:
            raise KeyboardInterrupt
        with self._lock:
            self._done[file] = max(self._done[file], min(done, self._sizes[file]))
            done, total = sum(self._done.values()), sum(self._sizes.values())
            self._on_progress(Progress(self._phase, done, total))

    def complete(self, file: str) -> None:
        """Say that a file is here, perhaps without a transfer: it may equal one that was."""
        self.count(file, self._sizes[file])

    def bar(self, file: str) -> type[tqdm]:
        """A progress bar, as the hub's client wants one, that counts and draws nothing.

        The client may give a file two bars, of bytes received and of bytes written. The one that
        is further says how far the file is.
        """
        from huggingface_hub.utils.tqdm import tqdm

        count = self.count

        class Bar(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> None:
                self.n += n or 0
                count(file, int(self.n))

        return Bar


def _check_disk(repo: str, needed: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE).absolute()
    disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise ModelError(
            f"{repo} takes {needed / 1e9:.2f} GB more and {cache} has {free / 1e9:.2f} GB free: "
            "make room, or set HF_HOME to a folder on a larger disk"
        )
