"""``--print-config``: what was given, and ``--print-config=all``: every key with its effective value, as YAML.

The YAML of ``all`` is a configuration by itself: read again, it is the same one. Sections of null have no keys there;
what they could hold follows as comments.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_type_hints

import yaml

from megatron_ssd.artifacts.manifest import flatten

OPTION = "--print-config"
_GIVEN, _ALL = "given", "all"


class Parser(argparse.ArgumentParser):
    """Takes ``--print-config`` and ``--print-config=all``; the argument after a bare one is an override, no value."""

    def __init__(self, *, description: str | None, epilog: str) -> None:
        super().__init__(description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument(OPTION, choices=[_GIVEN, _ALL], metavar="all", help="print what was given and stop; "
                          f"{OPTION}=all prints every key with its value, defaults included, as YAML")  # fmt: skip

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, with a bare option written out."""
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([f"{OPTION}={_GIVEN}" if a == OPTION else a for a in given], namespace)


def wants_all(arguments: argparse.Namespace) -> bool:
    """Whether every key was asked for, and not only those that were given."""
    return bool(arguments.print_config == _ALL)


def as_yaml(values: Any) -> str:
    """Nested dictionaries as YAML, in their order; tuples are lists there."""
    return yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True, width=120)


def every_key(config: Any) -> str:
    """Every key of a dataclass with its value, and as comments those of the sections that are null."""
    text = as_yaml(dataclasses.asdict(config))
    unnamed = list(_of_null_sections(config))
    if unnamed:
        text += "# These sections are null. What they would hold, with defaults:\n" + "".join(
            f"#   {line}\n" for line in unnamed
        )
    return text


def every_default(config: type, given: dict[str, Any]) -> str:
    """The keys of a tool's dataclass: what was given, else the default; what has none and was not given is null."""
    fields = dataclasses.fields(config)
    values = {field.name: given.get(field.name, _default(field)) for field in fields}
    needed = [field.name for field in fields if _is_needed(field) and field.name not in given]
    return as_yaml(values) + (f"# To be given, they have no default: {', '.join(needed)}\n" if needed else "")


def _of_null_sections(config: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _of_null_sections(value, f"{key}.")
        elif value is None:
            for part in get_args(hints[field.name]):
                if dataclasses.is_dataclass(part):
                    yield from _defaults(part, f"{key}.")


def _defaults(section: Any, prefix: str) -> Iterator[str]:
    """``KEY=VALUE`` of every key below a section."""
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        key, value = f"{prefix}{field.name}", _default(field)
        kinds = [part for part in (hints[field.name], *get_args(hints[field.name])) if dataclasses.is_dataclass(part)]
        if dataclasses.is_dataclass(value):
            values = flatten(dataclasses.asdict(value), f"{key}.")  # type: ignore[arg-type]
            yield from (f"{name}={_scalar(inner)}" for name, inner in values.items())
        elif kinds and value is None:
            yield from _defaults(kinds[0], f"{key}.")
        else:
            yield f"{key}=VALUE, has no default" if _is_needed(field) else f"{key}={_scalar(value)}"


def _scalar(value: Any) -> str:
    """A value as an override is written."""
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value
