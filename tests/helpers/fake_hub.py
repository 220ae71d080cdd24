"""A server with the endpoints of the Hugging Face Hub that an upload needs, without storage for large files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_of_a_test"
_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_PATH = re.compile(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(preupload|commit|revision)/main)?")


@dataclass
class FakeHub:
    """Repositories by ``models/OWNER/NAME``. ``uploads`` are the paths of each commit, ``refusal`` answers commits."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    uploads: list[list[str]] = field(default_factory=list)
    refusal: int | None = None

    def answer(self, path: str, token: str | None, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer; a request without ``body`` is a GET."""
        if path == "/api/validate-yaml":
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        found = _PATH.fullmatch(path)
        if found is None or (repo := f"{found[1]}/{found[2]}") not in self.files:
            return 404, {"error": f"nothing at {path}"}
        if found[3] == "preupload":
            return 200, {"files": [self._known(repo, one["path"]) for one in json.loads(body)["files"]]}
        if found[3] == "commit":
            return self._commit(repo, [json.loads(line) for line in body.splitlines()])
        return 200, {"id": found[2], "private": self.private[repo], "sha": _COMMIT}

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = f"{asked['organization']}/{asked['name']}"
        repo, kind = f"{asked['type']}s/{name}", "datasets/" if asked["type"] == "dataset" else ""
        if repo in self.files:
            return 409, {"error": "You already created this repo", "url": f"{self.url}/{kind}{name}"}
        self.files[repo], self.private[repo] = {}, asked["visibility"] == "private"
        return 200, {"url": f"{self.url}/{kind}{name}"}

    def _known(self, repo: str, path: str) -> dict[str, Any]:
        content = self.files[repo].get(path)
        oid = None if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": oid}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        if self.refusal is not None:
            return self.refusal, {"error": "this was refused"}
        sent = {line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"}
        self.files[repo] |= {path: base64.b64decode(value["content"]) for path, value in sent.items()}
        self.uploads.append(sorted(sent))
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{_COMMIT}", "commitOid": _COMMIT, "hookOutput": ""}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub without repositories, served from a thread on its own port."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, what = hub.answer(self.path.partition("?")[0], self.headers.get("Authorization"), body)
            content = json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.do_POST()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def refuse_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every download of a snapshot fail as without a network."""
    import huggingface_hub

    def refuse(path: str, **settings: Any) -> str:
        raise ConnectionError("no route to host\nand a second line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
