import gc
import os
from pathlib import Path

import numpy as np
import pytest

from rosellm.roseinfer import large_pages
from rosellm.roseinfer.host_memory import resident
from rosellm.roseinfer.large_pages import LARGE_PAGE, hold_again, zeros


@pytest.mark.parametrize("num_bytes", [1, LARGE_PAGE, 3 * LARGE_PAGE + 77])
def test_zeros_begin_with_a_large_page_and_outlive_what_made_them(num_bytes: int) -> None:
    pages = zeros(num_bytes)
    gc.collect()
    assert pages.shape == (num_bytes,)
    assert pages.ctypes.data % LARGE_PAGE == 0
    assert not pages.any()
    pages[:] = 7
    assert (pages == 7).all()


@pytest.mark.skipif(resident() is None, reason="the system does not tell")
def test_zeros_take_no_memory_until_they_are_written() -> None:
    def own() -> int:
        now = resident()
        assert now is not None
        return now.anonymous

    before = own()
    pages = zeros(64 * LARGE_PAGE)
    assert own() - before < 8 * LARGE_PAGE
    pages[: 32 * LARGE_PAGE] = 1
    assert own() - before > 31 * LARGE_PAGE


@pytest.mark.parametrize("num_bytes", [1, 2 * LARGE_PAGE, 2 * LARGE_PAGE + 12345])
def test_a_file_held_again_is_the_same(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "weights"
    wanted = np.random.default_rng(0).integers(0, 256, num_bytes, dtype=np.uint8).tobytes()
    with path.open("wb") as file:
        file.write(wanted)
        file.flush()
        os.fsync(file.fileno())
        hold_again(path)
        assert path.read_bytes() == wanted
    assert path.read_bytes() == wanted


@pytest.mark.skipif(resident() is None, reason="the system does not tell")
@pytest.mark.parametrize("gains", [True, False])
def test_a_file_is_read_to_its_end_only_where_its_first_page_gains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gains: bool
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(3 * LARGE_PAGE + 5))
    dropped: list[int] = []
    sizes = iter([0, 2048 if gains else 0])
    monkeypatch.setattr(large_pages, "_large_pages_of_files", lambda: next(sizes))
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _file, start, _size, _how: dropped.append(start)
    )
    hold_again(path)
    assert dropped == [i * LARGE_PAGE for i in range(4 if gains else 1)]


def test_a_file_that_cannot_be_held_again_is_nobodys_trouble(tmp_path: Path) -> None:
    hold_again(tmp_path / "missing")
