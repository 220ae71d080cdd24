"""A page opened in a real browser, and what it asked for and complained of meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def chromium() -> str:
    """Where Chromium is; fails the test where there is none."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.fail("no Chromium on PATH: run `make test`, or `apt-get install chromium`")
    return executable


class Visit:
    """The page opened once, with everything that it asked for and complained of."""

    def __init__(
        self, browser: Any, path: Path, *, width: int, scheme: str = "light", anchor: str = "", scripts: bool = True
    ) -> None:
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

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
