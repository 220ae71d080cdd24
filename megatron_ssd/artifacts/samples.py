"""Samples from JSON lines, quickly: typed decoding of the fields that a sample has and no others.

A line that the decoder refuses is read again by the slower rules of ``artifacts.jsonl`` and ``Sample.from_json``. These
take what is no UTF-8 but for a surrogate by itself, which Python's own writer lets pass, and name what is wrong else.

Beyond its types, a sample either has ids of a prompt and of a response, or is a skip without a response.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec

from megatron_ssd.artifacts.jsonl import parse_line
from megatron_ssd.artifacts.manifest import Manifest, read_manifest
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Sample

SAMPLES, SCORES = "samples", "scores"  # folders of a run
_BUFFER = 1 << 20
_IDS = ("prompt_token_ids", "response_token_ids")


def iter_samples(path: Path, *, vocab_size: int | None = None, digest: hashlib._Hash | None = None) -> Iterator[Sample]:
    """The samples of a JSONL file in order.

    Args:
        path: the file.
        vocab_size: every id must lie below it; None where ids are not looked at.
        digest: is given every byte of the file, so that whoever reads it to its end need not read it again for a hash.

    Raises:
        UserError: the file is missing, or a line is no sample or has an id outside the vocabulary; it names file and
            line.
    """
    if not path.is_file():
        raise UserError(f"file {path}", rule="does not exist", fix="check the path, or run the stage that makes it")
    decode = msgspec.json.Decoder(_row_type(vocab_size)).decode
    with path.open("rb", buffering=_BUFFER) as file:
        for number, line in enumerate(file, start=1):
            if digest is not None:
                digest.update(line)
            try:
                row = decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                row = _read_again(path, number, line, vocab_size)
            sample = Sample(**msgspec.structs.asdict(row))
            if contradiction := _contradiction(sample):
                raise _no_sample(path, number, contradiction)
            yield sample


def samples_manifest(run_dir: Path) -> Manifest:
    """The manifest of the samples. Raises ``UserError`` where the sampling stage has not published."""
    return read_manifest(run_dir / SAMPLES, stage=SAMPLES)


def sample_shards(run_dir: Path) -> list[Path]:
    """The files of samples, in order.

    Raises:
        UserError: the sampling stage has not published, or a shard that it did is gone or emptied.
    """
    folder, shards = run_dir / SAMPLES, []
    for output in samples_manifest(run_dir).outputs:
        if not Path(output["path"]).match("shard-*.jsonl"):
            continue
        path = folder / output["path"]
        is_there = os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        if not is_there or (output["bytes"] and not path.stat().st_size):
            raise UserError(
                f"file {path}",
                rule=f"{'is empty' if is_there else 'does not exist'}, and the manifest beside it counts "
                f"{output['bytes']} bytes of it",
                fix=f"put it back, or remove {folder} and sample again",
            )
        shards.append(path)
    if not shards:
        raise UserError(
            f"folder {folder}", rule="its manifest names no shard-*.jsonl", fix="remove it and sample again"
        )
    return shards


@functools.cache
def _row_type(vocab_size: int | None) -> type[msgspec.Struct]:
    """Exactly the fields of ``Sample``; from the dataclass itself, msgspec would let unknown ones pass."""
    hints = {**get_type_hints(Sample), "sample_index": Annotated[int, msgspec.Meta(ge=0)]}
    if vocab_size is not None:
        hints |= dict.fromkeys(_IDS, list[Annotated[int, msgspec.Meta(ge=0, lt=vocab_size)]])
    fields: list[Any] = [
        (field.name, hints[field.name], *([] if field.default is dataclasses.MISSING else [field.default]))
        for field in dataclasses.fields(Sample)
    ]
    return msgspec.defstruct("SampleRow", fields, forbid_unknown_fields=True)


def _contradiction(sample: Sample) -> str:
    """What in the fields of ``sample`` cannot go together; empty where all do."""
    if any("role" not in message or "content" not in message for message in sample.messages):
        return "a message has no role or no content"
    if sample.finish_reason == "skipped":
        return "it was skipped and has a response all the same" if sample.response_token_ids or sample.response else ""
    if not sample.prompt_token_ids:
        return "prompt_token_ids is empty and finish_reason is not skipped"
    if not sample.response_token_ids:
        return "response_token_ids is empty and finish_reason is not skipped"
    return f"it has a skip_reason and its finish_reason is {sample.finish_reason}" if sample.skip_reason else ""


def _read_again(path: Path, number: int, line: bytes, vocab_size: int | None) -> Any:
    try:
        row = parse_line(path, number, line)
    except UserError as error:
        raise UserError(error.what, rule=error.rule, fix=_remedy(path)) from None
    try:
        Sample.from_json(row)
        read = msgspec.convert(row, _row_type(None))
    except UserError as error:
        raise UserError(f"{path}:{number}", rule=error.rule, fix=_remedy(path)) from None
    except msgspec.ValidationError as error:
        raise _no_sample(path, number, str(error)[0].lower() + str(error)[1:]) from None
    for id_ in (id_ for name in _IDS for id_ in row[name]):
        if vocab_size is not None and not 0 <= id_ < vocab_size:
            raise UserError(
                f"{path}:{number} with token id {reprlib.repr(id_)}",
                rule=f"is outside the vocabulary of model.vocab_size = {vocab_size}",
                fix="name the model whose tokenizer made these ids",
            )
    return read


def _no_sample(path: Path, number: int, reason: str) -> UserError:
    return UserError(f"{path}:{number}", rule=f"is no sample: {reason}", fix=_remedy(path))


def _remedy(path: Path) -> str:
    return f"fix that line, or remove {path.parent} and sample again"
