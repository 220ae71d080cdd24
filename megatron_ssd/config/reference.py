"""Describes every configuration key for help texts."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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


def section_in(hint: Any) -> type | None:
    """The dataclass in a type such as ``ModelConfig | None`` or ``dict[str, EvaluationSetConfig]``, if there is one."""
    parts = (hint, *get_args(hint))
    return next((part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)), None)


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
        return f"list of {len(arguments)} {_kind(arguments[0])}"
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
