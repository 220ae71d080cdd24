"""Prints configurations as YAML: ``--print-config`` what was given, ``--print-config=all`` every key with its value.

The YAML of ``all`` is a configuration itself: read again, it gives the same one. Sections that are null have no keys in
it; comments list the keys that they could have.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from megatron_ssd.config.reference import REQUIRED, keys_of, shown_value

OPTION = "--print-config"
_GIVEN, _ALL = "given", "all"


class Parser(argparse.ArgumentParser):
    """Has ``--print-config`` and ``--print-config=all``. Any other argument after the option is an override."""

    def __init__(self, *, description: str | None, epilog: str) -> None:
        super().__init__(description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument(OPTION, choices=[_GIVEN, _ALL], metavar="all", help="print what was given and stop; "
                          f"{OPTION}=all prints every key with its value, defaults included, as YAML")  # fmt: skip

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, with a value for the bare option."""
        given: list[str] = []
        for argument in sys.argv[1:] if args is None else args:
            if argument == _ALL and given[-1:] == [f"{OPTION}={_GIVEN}"]:
                given[-1] = f"{OPTION}={_ALL}"
            else:
                given.append(f"{OPTION}={_GIVEN}" if argument == OPTION else argument)
        return super().parse_known_args(given, namespace)


def wants_all(arguments: argparse.Namespace) -> bool:
    """Whether ``--print-config=all`` was given."""
    return bool(arguments.print_config == _ALL)


def as_yaml(values: Any) -> str:
    """Nested dictionaries as YAML, in their order; tuples become lists."""
    return yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True, width=120)


def every_key(config: Any) -> str:
    """Every key of a configuration with its value, and as comments the keys of sections that are null."""
    text = as_yaml(dataclasses.asdict(config))
    if unset := list(_keys_of_null_sections(config)):
        text += "# These sections are null. They could hold, with these defaults:\n"
        text += "".join(f"#   {line}\n" for line in unset)
    return text


def every_key_of_tool(config: type, given: dict[str, Any]) -> str:
    """The keys of a tool: what was given, else the default. Required keys that were not given are null."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    values = {
        name: given.get(name, None if value is dataclasses.MISSING else value) for name, value in defaults.items()
    }
    missing = [key.name for key in keys_of(config) if key.default == REQUIRED and key.name not in given]
    return as_yaml(values) + (f"# Required, these have no default: {', '.join(missing)}\n" if missing else "")


def _keys_of_null_sections(config: Any, prefix: str = "") -> Iterator[str]:
    for key in keys_of(type(config)):
        value, name = getattr(config, key.name), f"{prefix}{key.name}"
        if dataclasses.is_dataclass(value):
            yield from _keys_of_null_sections(value, f"{name}.")
        elif value is None and key.section is not None:
            yield from _defaults(key.section, f"{name}.")


def _defaults(section: type, prefix: str) -> Iterator[str]:
    """``KEY=DEFAULT`` of every key below a section."""
    factories = {field.name: field.default_factory for field in dataclasses.fields(section)}
    for key in keys_of(section):
        name, factory = f"{prefix}{key.name}", factories[key.name]
        made = None if factory is dataclasses.MISSING else factory()
        if dataclasses.is_dataclass(made) and not isinstance(made, type):
            yield from (f"{name}.{inner}={shown_value(value)}" for inner, value in dataclasses.asdict(made).items())
        elif key.section is not None and made is None:
            yield from _defaults(key.section, f"{name}.")
        else:
            yield f"{name}=VALUE, required" if key.default == REQUIRED else f"{name}={key.default}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value
