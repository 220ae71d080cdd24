"""Builds configuration dataclasses from plain nested dictionaries.

pydantic checks the values against the standard dataclasses. Unknown keys are refused, and so are conversions such as
``"8"`` to 8 or 1.5 to 1.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any, TypeVar, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from megatron_ssd.config.reference import REQUIRED, Key, keys_of, section_in
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError, NotTextError, shown

T = TypeVar("T")

# Keys and sections of RunConfig that had another name: "old.dotted.key": "new.dotted.key". A name that changed by a
# letter or two needs no entry: the nearest known key is suggested anyway. A star stands for each name that the user
# gave in that section.
RENAMED: dict[str, str] = {
    "regression": "general_benchmarks",
    "benchmark.name": "benchmark.sets.*.format",
    **{f"benchmark.{key}": f"benchmark.sets.*.{key}" for key in ("path", "limit", "start_date", "end_date", "errata")},
}

_ADAPTERS: dict[type, TypeAdapter[Any]] = {}  # making one takes longer than using it
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_ARTICLES = {"integer": "an ", **dict.fromkeys(("number", "list", "pair", "mapping", "section"), "a ")}
_MOST_NAMED = 3  # suggestions; more do not help


def build(section: type[T], values: dict[str, Any]) -> T:
    """Check ``values`` and make a frozen ``section`` from them.

    Raises:
        ConfigError: names the key, the value, the rule and the fix for the first thing that is wrong.
    """
    try:
        # pydantic's strict mode accepts objects as dataclasses, and lists as tuples, only from JSON.
        result: T = _adapter(section).validate_json(json.dumps(values))
    except ValidationError as error:
        raise _explain(error, section, values) from None
    return result


def _adapter(section: type) -> TypeAdapter[Any]:
    if section not in _ADAPTERS:
        _make_strict(section)
        _ADAPTERS[section] = TypeAdapter(section)
    return _ADAPTERS[section]


def _make_strict(section: type) -> None:
    section.__pydantic_config__ = {"extra": "forbid", "strict": True}  # type: ignore[attr-defined]
    for hint in get_type_hints(section).values():
        if inner := section_in(hint):
            _make_strict(inner)


def _explain(error: ValidationError, root: type, values: dict[str, Any]) -> ConfigError:
    """One line for the first error. An unknown key comes before all others: it may be why another one is missing."""
    errors = error.errors()
    first = next((one for one in errors if one["type"] in _UNKNOWN_KEY), errors[0])
    # A number in the path is a place in a list, and users write whole lists.
    path = [str(part) for part in itertools.takewhile(lambda part: isinstance(part, str), first["loc"])]
    is_whole = len(path) == len(first["loc"])
    key, value = ".".join(path), first["input"] if is_whole else _value_at(path, values)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return _with_section(cause, ".".join(map(str, first["loc"])))
    if first["type"] in _UNKNOWN_KEY:
        return ConfigError(f"{key} = {shown(value)}", rule="there is no such key", fix=_suggestion(path, root, values))
    if is_whole and first["type"] in ("missing", "missing_keyword_only_argument"):
        return ConfigError(f"{key} is not set", rule="it has no default", fix=f"add {key}=VALUE")
    known = _key_at(path, root) if path else None
    if known is None:
        is_text = first["type"] == "string_type"  # YAML reads 12:00:00 as a number, for example
        return ConfigError(f"{key} = {shown(value)}", rule=first["msg"][0].lower() + first["msg"][1:],
                           fix="put it in quotes" if is_text else f"give {key} a value of that kind")  # fmt: skip
    if known.section is not None:
        fix = f"set its keys, such as {key}.{keys_of(known.section)[0].name}=VALUE"
    elif known.kind.startswith("list of ") and isinstance(value, str | int | float):
        fix = f"write {key}=[{value}]"
    else:
        fix = "give it such a value"
        fix += "" if known.default == REQUIRED else f", or leave it out: the default is {known.default}"
    article = _ARTICLES.get(known.kind.split()[0], "")
    kind = NotTextError if first["type"] == "string_type" else ConfigError
    return kind(f"{key} = {shown(value)}", rule=f"must be {article}{known.kind}", fix=fix)


def _value_at(path: list[str], values: Any) -> Any:
    for part in path:
        values = values[part]
    return values


def _key_at(path: list[str], root: type) -> Key | None:
    """The key at ``path``; None if it is a name that the user gave."""
    section = _section_at(path[:-1], root)
    return next((key for key in keys_of(section) if key.name == path[-1]), None) if section else None


def _with_section(error: ConfigError, section: str) -> ConfigError:
    """The error of a dataclass that several sections use, such as ``SamplingParams``, with the section's name."""
    key, separator, _ = error.what.partition(" = ")
    if "." in key or not separator or not section:
        return error
    return ConfigError(f"{section}.{error.what}", rule=error.rule, fix=error.fix)


def _suggestion(path: list[str], root: type, values: dict[str, Any]) -> str:
    """The fix for an unknown key: its new name, else a similar key of its section, else keys of that name elsewhere."""
    *section, name = path
    for length in range(len(path), 0, -1) if root is RunConfig else ():
        if new := RENAMED.get(".".join(path[:length])):
            meant = [".".join([one, *path[length:]]) for one in _with_names(new, values)]
            return f"did you mean {' or '.join(meant)}?"
    known = keys_at(section, root)
    elsewhere = [key for key in _all_keys(root) if key.rpartition(".")[2] == name]
    near = [".".join([*section, key]) for key in difflib.get_close_matches(name, known, n=1)]
    meant = near or (elsewhere if len(elsewhere) <= _MOST_NAMED else [])
    return f"did you mean {' or '.join(meant)}?" if meant else f"known are {', '.join(sorted(known))}"


def _with_names(key: str, values: dict[str, Any]) -> list[str]:
    """``key`` for each name that ``values`` have in the place of its star; NAME if they have none."""
    section, star, rest = key.partition("*")
    if not star:
        return [key]
    named: Any = values
    for part in section.rstrip(".").split("."):
        named = (named or {}).get(part)
    return [f"{section}{name}{rest}" for name in named or ("NAME",)]


@functools.cache
def _all_keys(root: type) -> tuple[str, ...]:
    """Every dotted key, except those of sections that the user names (``contamination.sets``)."""

    def below(section: type, prefix: str) -> Iterator[str]:
        for name, hint in get_type_hints(section).items():
            inner = None if get_origin(hint) is dict else section_in(hint)
            yield from below(inner, f"{prefix}{name}.") if inner else (f"{prefix}{name}",)

    return tuple(below(root, ""))


def keys_at(path: list[str], root: type = RunConfig) -> list[str]:
    """Names of the keys in the section at ``path``; empty if ``path`` is not a section."""
    section = _section_at(path, root)
    return list(get_type_hints(section)) if section else []


def _section_at(path: list[str], root: type) -> type | None:
    section = root
    is_any_name = False  # the next part is a key of a mapping whose values are sections
    for part in path:
        if is_any_name:
            is_any_name = False
            continue
        hint = get_type_hints(section).get(part)
        is_any_name = get_origin(hint) is dict
        inner = section_in(hint)
        if inner is None:
            return None
        section = inner
    return section
