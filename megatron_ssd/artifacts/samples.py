"""Samples from JSON lines, quickly: typed decoding of the fields that a sample has and no others.

A line that the decoder refuses is read again by the slower rules of ``artifacts.jsonl`` and ``Sample.from_json``. These
take what is no UTF-8 but for a surrogate by itself, which Python's own writer lets pass, and name what is wrong else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from megatron_ssd.artifacts.jsonl import parse_line
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Sample

_BUFFER = 1 << 20


def iter_samples(path: Path) -> Iterator[Sample]:
    """The samples of a JSONL file in order.

    Raises:
        UserError: the file is missing, or a line is no sample; it names file and line.
    """
    if not path.is_file():
        raise UserError(f"file {path}", rule="does not exist", fix="check the path, or run the stage that makes it")
    decode = msgspec.json.Decoder(_row_type()).decode
    with path.open("rb", buffering=_BUFFER) as file:
        for number, line in enumerate(file, start=1):
            try:
                row = decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                row = _read_again(path, number, line)
            yield Sample(**msgspec.structs.asdict(row))


@functools.cache
def _row_type() -> type[msgspec.Struct]:
    """Exactly the fields of ``Sample``; from the dataclass itself, msgspec would let unknown ones pass."""
    hints = get_type_hints(Sample)
    fields: list[Any] = [
        (field.name, hints[field.name], *([] if field.default is dataclasses.MISSING else [field.default]))
        for field in dataclasses.fields(Sample)
    ]
    return msgspec.defstruct("SampleRow", fields, forbid_unknown_fields=True)


def _read_again(path: Path, number: int, line: bytes) -> Any:
    row = parse_line(path, number, line)
    try:
        Sample.from_json(row)
        return msgspec.convert(row, _row_type())
    except UserError as error:
        raise UserError(f"{path}:{number}", rule=error.rule, fix=error.fix) from None
    except msgspec.ValidationError as error:
        reason = str(error)[0].lower() + str(error)[1:]
        raise UserError(
            f"{path}:{number}", rule=f"is no sample: {reason}", fix="mend that line, or sample its shard again"
        ) from None
