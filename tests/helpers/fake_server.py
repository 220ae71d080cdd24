"""A completions server without a model, which responds like vLLM or fails on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.helpers.fake_engine import END, tokens_of_prompt

Answer = tuple[int, dict[str, Any]]


class FakeServer:
    """Serves one model from a thread, on its own port.

    Args:
        root: The model folder that the server reports.
        behaviour: Called with the number of a request, from 0, and its body. Returns the response to send instead of a
            completion, or None for a completion.
        seconds: The time that a completion takes.
    """

    def __init__(
        self,
        root: str,
        behaviour: Callable[[int, dict[str, Any]], Answer | None] = lambda number, body: None,
        *,
        max_model_len: int = 256,
        name: str = "tiny",
        seconds: float = 0.0,
    ) -> None:
        self.card = {"id": name, "root": root, "max_model_len": max_model_len, "parent": None}
        self.behaviour, self.seconds = behaviour, seconds
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.is_closed = False
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                answers: dict[str, Any] = {"/v1/models": {"data": [fake.card]}, "/version": {"version": "0.0.fake"}}
                found = answers.get(self.path)
                self._say(200 if found else 404, found or {"error": {"message": "nothing here"}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if fake.is_closed:  # connections outlive the accepting thread
                    self.close_connection = True
                    return
                self._say(*fake.answer(body, dict(self.headers)))

            def _say(self, status: int, what: dict[str, Any]) -> None:
                content = json.dumps(what).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            time.sleep(self.seconds)
            return self.behaviour(number, body) or (200, completion(body))
        finally:
            with self._lock:
                self.in_flight -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; pending requests are dropped or answered."""
        self.is_closed = True
        self._server.shutdown()
        self._server.server_close()


def completion(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The response to ``body``, with ``changes`` to its choice."""
    ids, reason = tokens_of_prompt(body["prompt"], body["seed"], body["max_tokens"])
    choice = {
        "token_ids": ids,
        "prompt_token_ids": body["prompt"],
        "finish_reason": reason,
        "stop_reason": END if reason == "stop" else None,
        "text": "",
    }
    return {"choices": [{**choice, **changes}]}
