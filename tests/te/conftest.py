"""Prints what the tests here have compared."""

from __future__ import annotations

import pytest

from tests.helpers.built_ranks import COUNTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The numbers of docs/reference/versions.md."""
    if COUNTS:
        terminalreporter.write_line(
            f"{COUNTS['ranks']:,} ranks of {COUNTS['layouts']} layouts hold the same with both kinds of layers"
        )
