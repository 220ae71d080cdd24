"""Fake programs on PATH."""

from __future__ import annotations

from pathlib import Path


def write_executable(path: Path, body: str) -> None:
    """Write an executable shell script; a link at ``path`` is replaced, and its target stays as it is."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
