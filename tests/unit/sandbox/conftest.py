"""Containers that the tests of the sandbox share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.sandbox.sandbox import Sandbox


@pytest.fixture(scope="package")
def sandbox() -> Iterator[Sandbox]:
    """One container with the default settings, for all tests that do not need their own."""
    with Sandbox(SandboxConfig()) as container:
        container.start()
        yield container
