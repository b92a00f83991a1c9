"""A fault in one row of a step ends that row's request; who shares its steps does not notice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.conftest import Server, start_server
from tests.faults.conftest import post, refused
from tests.faults.neighbours import KINDS, alone, undisturbed

POISON = Path(__file__).parent / "poison"
FAULTS = ("no number", "exception", "allocation")


@pytest.fixture(scope="module")
def guilty(server: Server) -> Mapping[str, int]:
    """A token for each fault. The neighbours have none of them."""
    theirs = {id for kind in KINDS for id in alone(server.url, kind, 24)}
    for fields in KINDS.values():
        answer = httpx.post(f"{server.url}/tokenize", json={"prompt": fields["prompt"]})
        theirs.update(answer.json()["tokens"])
    free = [id for id in range(200) if id not in theirs]
    return dict(zip(FAULTS, free[10:], strict=False))


@pytest.fixture(scope="module")
def faulty(
    model_folder: Path, guilty: Mapping[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("faulty") / "tiny-llama"
    shutil.copytree(model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][guilty["no number"]] = float("nan")
    save_file(weights, folder / "model.safetensors")
    running = start_server(
        str(folder),
        model="tiny-llama",
        PYTHONPATH=f"{POISON}:{os.environ.get('PYTHONPATH', '')}",
        POISON_BUG=str(guilty["exception"]),
        POISON_MEMORY=str(guilty["allocation"]),
    )
    yield running
    assert running.stop() == 0


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("length", [1, 200])
def test_it_ends_its_request_alone(
    faulty: Server, guilty: Mapping[str, int], fault: str, length: int
) -> None:
    body = {"model": "tiny-llama", "prompt": [guilty[fault]] * length, "max_tokens": 8}
    engine = faulty.engine_pid()
    with undisturbed(faulty):
        for _ in range(2):
            said = refused(post(faulty, "/v1/completions", body), 500, None)
            assert "Error" not in said
    assert faulty.engine_pid() == engine
