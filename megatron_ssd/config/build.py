"""Plain nested dictionaries (from YAML) to ``RunConfig``: the one place where that happens.

pydantic does the checking and reads the standard dataclasses as they are; nothing in them knows of it. Unknown keys are
refused, and so are conversions such as ``"8"`` to 8 or 1.5 to 1.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError


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
    """The first complaint as one line."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    known = _keys_at(path[:-1])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(path[-1], known, n=1)
        fix = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"known are {', '.join(sorted(known))}"
        return ConfigError(f"{key} = {first['input']!r}", rule="there is no such key", fix=fix)
    if first["type"] in ("missing", "missing_keyword_only_argument"):
        return ConfigError(f"{key} is not set", rule="it has no default", fix=f"add {key}=VALUE")
    rule = first["msg"][0].lower() + first["msg"][1:]
    return ConfigError(f"{key} = {first['input']!r}", rule=rule, fix=f"give {key} a value of that kind")


def _keys_at(path: list[str]) -> list[str]:
    """Field names of the section at ``path``; empty where ``path`` is not a section."""
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
