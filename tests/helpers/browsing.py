"""Visits of a page in a real browser."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def chromium() -> str:
    """Path of Chromium. If there is none, the test fails."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.fail("no Chromium on PATH: run `make test`, or `apt-get install chromium`")
    return executable


class Visit:
    """An open page with its requests and its console messages."""

    def __init__(
        self, browser: Any, path: Path, *, width: int, scheme: str = "light", anchor: str = "", scripts: bool = True
    ) -> None:
        self.path = path
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
        )
        self.page = self._context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri() + (f"#{anchor}" if anchor else ""))

    def wait_until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true. Playwright's own wait needs ``eval``, which the pages forbid."""
        deadline = time.monotonic() + 30
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"still not true: {expression}"
            self.page.wait_for_timeout(20)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
