"""Tools that are no stage: ``KEY=VALUE`` arguments to one small dataclass, which has its keys, kinds and defaults."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from megatron_ssd.cli.entry import run_guarded, start_logging
from megatron_ssd.cli.print_config import Parser, as_yaml, every_default, wants_all
from megatron_ssd.errors import ConfigError

T = TypeVar("T")


def run_with_keys(run: Callable[[T], None], config: type[T], *, description: str | None) -> None:
    """What a tool does around its work: parse the command line to a ``config``, log, run, end as stages do.

    ``--help`` lists the keys from the docstring of ``config``, ``--print-config=all`` their values.
    """
    parser = Parser(description=description, epilog=f"Keys:{(config.__doc__ or '').partition('Args:')[2]}")
    parser.add_argument("arguments", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_intermixed_args()

    def act() -> None:
        if arguments.print_config:
            given = given_keys(config, arguments.arguments)
            print(every_default(config, given) if wants_all(arguments) else as_yaml(given), end="")
            return
        start_logging()
        run(parse_keys(config, arguments.arguments))

    run_guarded(act)


def parse_keys(config: type[T], arguments: Sequence[str]) -> T:
    """``KEY=VALUE`` arguments as a ``config``. Raises ``ConfigError``."""
    values = given_keys(config, arguments)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and not values.get(field.name):
            raise ConfigError(f"{field.name} is not set", rule="it has no default", fix=f"add {field.name}=VALUE")
    return config(**values)


def given_keys(config: type, arguments: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` arguments as values of the kinds that ``config`` has. Raises ``ConfigError``."""
    fields = [field.name for field in dataclasses.fields(config)]
    kinds = get_type_hints(config)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if not separator or key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}=VALUE?" if near else "see --help"
            raise ConfigError(f"argument {argument!r}", rule=f"known are {', '.join(fields)}, as KEY=VALUE", fix=hint)
        values[key] = _value(key, text, kinds[key])
    return values


def _value(key: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is types.UnionType:  # a kind or None, and None is what is not named
        (kind,) = (part for part in get_args(kind) if part is not types.NoneType)
    if kind is bool:
        _choose(key, text, ("true", "false"))
        return text == "true"
    if kind is int:
        if not text.isdecimal():
            raise ConfigError(f"{key} = {text!r}", rule="must be a whole number", fix=f"write {key}=10")
        return int(text)
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{key} = {text!r}", rule="must be a number", fix=f"write {key}=0.5") from None
    if get_origin(kind) is tuple:  # of texts
        return tuple(
            part.strip() for part in text.strip().removeprefix("[").removesuffix("]").split(",") if part.strip()
        )
    if get_origin(kind) is Literal:
        _choose(key, text, get_args(kind))
    return text


def _choose(key: str, text: str, choices: tuple[str, ...]) -> None:
    if text not in choices:
        raise ConfigError(f"{key} = {text!r}", rule="there is no such choice", fix=f"choose {' or '.join(choices)}")
