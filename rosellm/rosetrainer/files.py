"""Files that are either whole or not there, and complaints about disks in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rosellm.roseinfer.errors import ConfigError


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    write_file(path, lambda file: file.write(text.encode()))


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole: beside its place, onto the disk, then moved there.

    Whatever happens meanwhile, ``path`` holds either what it held or all of what is new.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """What a disk refuses, a full one for instance, as an error for people.

    Raises:
        ConfigError: in the place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what} cannot be written: {error.strerror or error}") from None
