"""Plain nested dictionaries (from YAML) to ``RunConfig``: the one place where that happens.

pydantic does the checking and reads the standard dataclasses as they are; nothing in them knows of it. Unknown keys are
refused, and so are conversions such as ``"8"`` to 8 or 1.5 to 1.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError, shown

# Keys and sections that had another name: "old.dotted.key": "new.dotted.key". A name that changed by a letter or two
# needs no entry: the nearest known key is suggested anyway.
RENAMED: dict[str, str] = {
    "training.over_long": "training.overlong",
}

_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_MOST_NAMED = 3  # keys of one name; more are no hint


def build_config(values: dict[str, Any]) -> RunConfig:
    """Check ``values`` and freeze them.

    Raises:
        ConfigError: names the key, the value, the rule and the fix, for the first thing that is wrong.
    """
    try:
        # The JSON way in is pydantic's strict mode that still takes objects for dataclasses and lists for tuples.
        return _adapter().validate_json(json.dumps(values))
    except ValidationError as error:
        raise _explain(error) from None


@functools.cache
def _adapter() -> TypeAdapter[RunConfig]:
    _make_strict(RunConfig)
    return TypeAdapter(RunConfig)


def _make_strict(section: type) -> None:
    section.__pydantic_config__ = {"extra": "forbid", "strict": True}  # type: ignore[attr-defined]
    for hint in get_type_hints(section).values():
        for part in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                _make_strict(part)


def _explain(error: ValidationError) -> ConfigError:
    """One complaint as one line: a key that does not exist before all others, as it may be why another is missing."""
    complaints = error.errors()
    first = next((one for one in complaints if one["type"] in _UNKNOWN_KEY), complaints[0])
    path = [str(part) for part in first["loc"]]
    key, value = ".".join(path), first["input"]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return _with_section(cause, key)
    if first["type"] in _UNKNOWN_KEY:
        return ConfigError(f"{key} = {shown(value)}", rule="there is no such key", fix=_suggestion(path))
    if first["type"] in ("missing", "missing_keyword_only_argument"):
        return ConfigError(f"{key} is not set", rule="it has no default", fix=f"add {key}=VALUE")
    if first["type"] in ("tuple_type", "list_type") and isinstance(value, str | int | float):
        return ConfigError(f"{key} = {shown(value)}", rule="must be a list", fix=f"write {key}=[{value}]")
    rule = first["msg"][0].lower() + first["msg"][1:]
    return ConfigError(f"{key} = {shown(value)}", rule=rule, fix=f"give {key} a value of that kind")


def _with_section(error: ConfigError, section: str) -> ConfigError:
    """The error of a dataclass that several sections use, such as ``SamplingParams``, with the section it is in."""
    key, separator, _ = error.what.partition(" = ")
    if "." in key or not separator or not section:
        return error
    return ConfigError(f"{section}.{error.what}", rule=error.rule, fix=error.fix)


def _suggestion(path: list[str]) -> str:
    """What was meant by an unknown key: its new name, else a similar key beside it, else one of that name elsewhere."""
    *section, name = path
    for length in range(len(path), 0, -1):
        if new := RENAMED.get(".".join(path[:length])):
            return f"did you mean {'.'.join([new, *path[length:]])}?"
    known = keys_at(section)
    elsewhere = [key for key in _all_keys() if key.rpartition(".")[2] == name]
    near = [".".join([*section, key]) for key in difflib.get_close_matches(name, known, n=1)]
    meant = near or (elsewhere if len(elsewhere) <= _MOST_NAMED else [])
    return f"did you mean {' or '.join(meant)}?" if meant else f"known are {', '.join(sorted(known))}"


@functools.cache
def _all_keys() -> tuple[str, ...]:
    """Every key of every section, named or null; sections of any name (``contamination.sets``) aside."""

    def below(section: type, prefix: str) -> Iterator[str]:
        for name, hint in get_type_hints(section).items():
            parts = [part for part in (hint, *get_args(hint)) if isinstance(part, type)]
            inner = [] if get_origin(hint) is dict else [part for part in parts if dataclasses.is_dataclass(part)]
            yield from below(inner[0], f"{prefix}{name}.") if inner else (f"{prefix}{name}",)

    return tuple(below(RunConfig, ""))


def keys_at(path: list[str]) -> list[str]:
    """Field names of the section at ``path``; empty if ``path`` is not a section."""
    section: Any = RunConfig
    of_any_name = False  # the next part is a key of a mapping whose values are sections
    for part in path:
        if of_any_name:
            of_any_name = False
            continue
        hint = get_type_hints(section).get(part)
        of_any_name = get_origin(hint) is dict
        parts = [p for p in (hint, *get_args(hint)) if isinstance(p, type) and dataclasses.is_dataclass(p)]
        if not parts:
            return []
        section = parts[0]
    return [field.name for field in dataclasses.fields(section)]
