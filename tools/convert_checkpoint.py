"""Convert a Hugging Face model folder to a Megatron-Core checkpoint, or back, bit by bit.

python tools/convert_checkpoint.py direction=hf_to_megatron hf=models/qwen3 megatron=models/qwen3-megatron
python tools/convert_checkpoint.py direction=megatron_to_hf megatron=models/qwen3-megatron hf=models/qwen3-again
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys

from megatron_ssd.cli.entry import EXIT_INTERRUPTED, run_guarded, start_logging
from megatron_ssd.config.export import ConvertConfig
from megatron_ssd.errors import ConfigError
from megatron_ssd.export.convert import run_convert

_CHOICES = {"direction": ("hf_to_megatron", "megatron_to_hf"), "weights": ("model", "ema")}
_KINDS = {"iteration": int, "max_shard_bytes": int, "verify": bool, "replace": bool}
_FIELDS = {field.name: field for field in dataclasses.fields(ConvertConfig)}


def parse(arguments: list[str]) -> ConvertConfig:
    """``KEY=VALUE`` arguments to a checked configuration. Raises ``ConfigError``."""
    values: dict[str, object] = {}
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if not separator or key not in _FIELDS:
            near = difflib.get_close_matches(key, _FIELDS, n=1)
            hint = f"did you mean {near[0]}=VALUE?" if near else "see --help"
            raise ConfigError(f"argument {argument!r}", rule=f"known are {', '.join(_FIELDS)}, as KEY=VALUE", fix=hint)
        values[key] = _value(key, text)
    for name, field in _FIELDS.items():
        if field.default is dataclasses.MISSING and not values.get(name):
            raise ConfigError(f"{name} is not set", rule="it has no default", fix=f"add {name}=VALUE")
    return ConvertConfig(**values)  # type: ignore[arg-type]


def _value(key: str, text: str) -> object:
    kind = _KINDS.get(key, str)
    if kind is bool:
        _choose(key, text, ("true", "false"))
        return text == "true"
    if kind is int:
        if not text.isdecimal():
            raise ConfigError(f"{key} = {text!r}", rule="must be a whole number", fix=f"write {key}=1000000")
        return int(text)
    if key in _CHOICES:
        _choose(key, text, _CHOICES[key])
    return text


def _choose(key: str, text: str, choices: tuple[str, ...]) -> None:
    if text not in choices:
        raise ConfigError(f"{key} = {text!r}", rule="there is no such choice", fix=f"choose {' or '.join(choices)}")


def _run(arguments: list[str]) -> None:
    start_logging()
    try:
        run_convert(parse(arguments))
    except KeyboardInterrupt:
        print("interrupted: nothing was written; run the same command again", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def main() -> None:
    """Parse, convert, and end with one line where something is wrong."""
    keys = (ConvertConfig.__doc__ or "").partition("Args:")[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = f"Keys:{keys}"
    parser.add_argument("arguments", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args().arguments
    run_guarded(lambda: _run(arguments))


if __name__ == "__main__":
    main()
