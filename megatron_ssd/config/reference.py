"""Describes configuration keys: in help texts, in errors, as YAML."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from megatron_ssd.errors import require

REQUIRED = "required"


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a section.

    Args:
        kind: its type in words, for example ``integer or null``.
        default: its default as YAML, or ``required``.
        section: the dataclass that it holds, if it is a section itself.
    """

    name: str
    kind: str
    default: str
    description: str
    section: type | None


def keys_of(section: type) -> tuple[Key, ...]:
    """The keys of a configuration dataclass, in their order. Descriptions are the docstrings below its fields."""
    descriptions = dict(_field_docstrings(section))
    hints = get_type_hints(section)
    return tuple(
        Key(
            name=field.name,
            kind=_kind(hints[field.name]),
            default=_default(field),
            description=descriptions.get(field.name, ""),
            section=section_in(hints[field.name]),
        )
        for field in dataclasses.fields(section)
    )


def dotted_keys(section: type, prefix: str = "") -> Iterator[str]:
    """Every key below ``section`` that has a value, such as ``optimizer.lr``."""
    for key in keys_of(section):
        if key.section is None or key.kind.startswith("mapping"):  # whose names the user chooses
            yield prefix + key.name
        else:
            yield from dotted_keys(key.section, f"{prefix}{key.name}.")


def section_in(hint: Any) -> type | None:
    """The dataclass in a type such as ``ModelConfig | None`` or ``dict[str, EvaluationSetConfig]``, if there is one."""
    parts = (hint, *get_args(hint))
    return next((part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)), None)


def require_key(section: object, key: str, condition: bool, *, rule: str, fix: str) -> None:
    """Raise ``ConfigError`` about ``key`` unless ``condition`` holds; ``config.build`` adds the section's name."""
    require(condition, f"{key} = {shown_value(getattr(section, key))}", rule=rule, fix=fix)


def require_positive(section: object, *keys: str, fix: str) -> None:
    """Raise ``ConfigError`` about the first of ``keys`` that is not above 0; null is allowed."""
    for key in keys:
        value = getattr(section, key)
        require_key(section, key, value is None or value > 0, rule="must be positive", fix=fix)


def help_text(section: type) -> str:
    """The keys of a tool's section as lines for ``--help``."""
    lines = ["Keys (required ones first):"]
    for key in sorted(keys_of(section), key=lambda key: key.default != REQUIRED):
        text = key.description.replace("``", "")
        default = "" if key.default == REQUIRED else f" Default: {key.default}."
        lines += [f"  {key.name} ({key.kind})", textwrap.indent(textwrap.fill(f"{text}{default}", 110), " " * 6)]
    return "\n".join(lines)


def _field_docstrings(section: type) -> Iterator[tuple[str, str]]:
    """(field, docstring) pairs, read from the source: Python drops the string below a field."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(section)).body if isinstance(node, ast.ClassDef))
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            yield field.target.id, " ".join(text.split())


def _kind(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(str(choice) for choice in arguments[:-1]) + f" or {arguments[-1]}"
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_kind(arguments[0])}"
        assert len(arguments) == 2
        return f"pair [a, b] of {_kind(arguments[0])}s"
    if origin is dict:
        return f"mapping to {_kind(arguments[1])}"
    if hint is types.NoneType:
        return "null"
    if dataclasses.is_dataclass(hint):
        return "section"
    return {str: "text", bool: "true or false", int: "integer", float: "number", Any: "any value"}[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return shown_value(field.default_factory())
    return REQUIRED if field.default is dataclasses.MISSING else shown_value(field.default)


def shown_value(value: Any) -> str:
    """A value as it is written in an override."""
    if dataclasses.is_dataclass(value):
        return "section"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(shown_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown_value(inner)}" for key, inner in value.items()) + "}"
    return str(value) if value != "" else "''"


def as_yaml(values: dict[str, Any]) -> str:
    """Nested dictionaries as YAML, in their order; tuples become lists."""
    return yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False, allow_unicode=True, width=120)


def every_key(config: Any) -> str:
    """A configuration as YAML that gives the same one when it is read again.

    Sections that are null have no keys in it; comments list the keys that they could have.
    """
    text = as_yaml(dataclasses.asdict(config))
    if unset := list(_keys_of_null_sections(config)):
        text += "# These sections are null. They could hold, with these defaults:\n"
        text += "".join(f"#   {line}\n" for line in unset)
    return text


def every_key_of_tool(config: type, given: dict[str, Any]) -> str:
    """The keys of a tool: what was given, else the default. Required keys that were not given are null."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)} | given
    missing = [name for name, value in defaults.items() if value is dataclasses.MISSING]
    text = as_yaml(defaults | dict.fromkeys(missing))
    return text + (f"# Required, these have no default: {', '.join(missing)}\n" if missing else "")


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
