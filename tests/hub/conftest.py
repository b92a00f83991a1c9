"""A hub of our own: a small HTTP server that speaks as much of its API as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import close_session, constants

from rosellm.roseinfer.hub_transfer import THREAD_NAME

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the hub holds and how it answers; ``got`` lists the files that were fetched.

    Attributes:
        refusal: status and headers of every answer about a file, where it refuses.
        api_refusal: the same of every answer about a repository.
        pause: called before each piece of a file's body.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    repo: str = "org/tiny"
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    refusal: tuple[int, dict[str, str]] | None = None
    api_refusal: tuple[int, dict[str, str]] | None = None
    pause: Callable[[], object] = lambda: None
    got: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def add_folder(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[path.relative_to(folder).as_posix()] = path.read_bytes()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(path)
        if path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
        else:
            self._serve(path)

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        pass

    def _describe(self, name: str) -> None:
        repo, _, revision = name.partition("/revision/")
        if self.hub.api_refusal:
            self._refuse(*self.hub.api_refusal)
        elif repo != self.hub.repo:
            self._refuse(404, {"X-Error-Code": "RepoNotFound"})
        elif (revision or "main") not in self.hub.revisions:
            self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            files = [{"rfilename": f, "size": len(b)} for f, b in self.hub.files.items()]
            body = json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode()
            self._answer(200, {"Content-Type": "application/json"}, body)

    def _serve(self, path: str) -> None:
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if self.hub.refusal:
            self._refuse(*self.hub.refusal)
        elif repo != self.hub.repo or revision not in self.hub.revisions:
            self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        elif file not in self.hub.files:
            self._refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            body = self.hub.files[file]
            etag = hashlib.sha256(body).hexdigest()
            if self.command == "GET":
                self.hub.got.append(file)
            self._answer(200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self._answer(status, headers, b"")

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body), 1 << 16):
            self.hub.pause()
            self.wfile.write(body[start : start + (1 << 16)])


@pytest.fixture
def hub_server() -> Iterator[FakeHub]:
    """A running hub that holds nothing yet."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(hub_server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """That hub in place of the real one for this process, with an empty cache.

    The client has read its environment when it was imported, so its constants are set instead.
    """
    point_client_at(hub_server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    yield hub_server
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:  # one that failed leaves the others to their last file
            thread.join(10)
    close_session()


def point_client_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
