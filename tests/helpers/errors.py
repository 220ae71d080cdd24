"""Expects errors of users."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from megatron_ssd.errors import ConfigError, UserError


@contextlib.contextmanager
def one_line_error(match: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Expect an error of this kind, with one short line that matches the regular expression ``match``."""
    with pytest.raises(kind, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@contextlib.contextmanager
def config_error(*parts: str) -> Iterator[None]:
    """Expect a ``ConfigError`` of one line that contains every one of ``parts``."""
    with pytest.raises(ConfigError) as caught:
        yield
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
