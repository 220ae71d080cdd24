"""Tests that every configuration key has a type, a default and a description."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import pytest

from megatron_ssd.config.reference import Key, help_text, keys_of
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.tools import ConvertConfig, GradeConfig, InspectConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A section."""

    x: int
    """A number."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A section with one key of each type."""

    name: str
    """What ``name`` means,
    in two lines."""
    kind: Literal["a", "b", "c"] = "a"
    band: tuple[float, float] | None = None
    texts: tuple[str, ...] = ("x", "")
    on: bool = True
    inner: Inner | None = None
    named: dict[str, Inner] = field(default_factory=dict)


def test_keys_have_type_default_description_and_section() -> None:
    assert keys_of(Example) == (
        Key("name", "text", "required", "What ``name`` means, in two lines.", None),
        Key("kind", "a, b or c", "a", "", None),
        Key("band", "pair [a, b] of numbers or null", "null", "", None),
        Key("texts", "list of text", "[x, '']", "", None),
        Key("on", "true or false", "true", "", None),
        Key("inner", "section or null", "null", "", Inner),
        Key("named", "mapping to section", "{}", "", Inner),
    )


@pytest.mark.parametrize("root", [RunConfig, GradeConfig, InspectConfig, ConvertConfig])
def test_every_key_is_described(root: type) -> None:
    assert [name for name, key in below(root, "") if not key.description.endswith(".")] == []


def below(section: type, prefix: str) -> Iterator[tuple[str, Key]]:
    """Every key of a section and of the sections in it, with its full name."""
    for key in keys_of(section):
        yield f"{prefix}{key.name}", key
        if key.section is not None:
            yield from below(key.section, f"{prefix}{key.name}.")


def test_the_help_of_a_tool_lists_its_keys_with_defaults() -> None:
    text = help_text(ConvertConfig)
    assert text.index("direction (hf_to_megatron or megatron_to_hf)") < text.index("hf_assets (text or null)")
    assert "Default: 5000000000." in text
