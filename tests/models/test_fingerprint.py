"""The fingerprint names what decides about bits: weights, type and kernels, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rosellm.roseinfer.kernels.cpu.library import Library, load
from rosellm.roseinfer.loading.identity import begin_hashing, weights_hash
from tests.tiny_models import build, write_llama


def fingerprint(folder: Path, **settings: Any) -> str:
    told: str = build(folder, **{"kernels": "reference", **settings}).facts.fingerprint
    return told


def flip_a_bit(file: Path) -> None:
    """Change one weight, and neither the file's size nor its time."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "model")


def test_a_copy_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "other" / "name"))
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    assert fingerprint(copy) == fingerprint(folder)


def test_another_weight_is_another_model(folder: Path) -> None:
    before = fingerprint(folder)
    [weights] = folder.glob("*.safetensors")
    flip_a_bit(weights)
    assert fingerprint(folder) != before


def test_type_and_kernels_count(folder: Path) -> None:
    told = {fingerprint(folder), fingerprint(folder, dtype="bfloat16")}
    told.add(fingerprint(folder, quantization="int8"))
    assert len(told) == 3
    if isinstance(load(), Library):
        told.add(fingerprint(folder, kernels="auto"))
        assert len(told) == 4


def test_the_level_and_the_build_of_native_kernels_count() -> None:
    library = load()
    if not isinstance(library, Library):
        pytest.skip("no native kernels are built")
    level, built = library.identity.split()
    assert level == library.level
    assert len(built) == 64


def test_a_single_file_has_a_hash_of_its_own(tmp_path: Path) -> None:
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    one.write_bytes(b"weights")
    other.write_bytes(b"weights")
    assert weights_hash(str(one)) == weights_hash(str(other))
    flip_a_bit(other)
    assert weights_hash(str(one)) != weights_hash(str(other))


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model.pt"
    file.write_bytes(b"weights")
    found = weights_hash(str(file))
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", None)
        assert weights_hash(str(file)) == found
        flip_a_bit(file)
        with pytest.raises(TypeError):
            weights_hash(str(file))
    assert weights_hash(str(file)) != found


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert weights_hash(str(file)) == weights_hash(str(file))


def test_what_cannot_be_read_is_raised_where_the_hash_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        begin_hashing(str(tmp_path / "nothing.pt")).result()
