"""Reads samples from JSON lines with a fast typed decoder.

A line that the decoder rejects is read again by the slower ``artifacts.jsonl``, which accepts a lone surrogate, as
Python's JSON writer does and UTF-8 does not, and describes any other error.

Besides the types, a sample must have prompt ids and response ids, or be skipped and have no response.
"""

from __future__ import annotations

import functools
import hashlib
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

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
        vocab_size: every id must be below it; None does not check ids.
        digest: is updated with every byte of the file, so that the file need not be read again for a hash.

    Raises:
        UserError: the file is missing, or a line is not a sample or has an id outside the vocabulary; the message names
            file and line.
    """
    if not path.is_file():
        raise UserError(f"file {path}", rule="does not exist", fix="check the path, or run the stage that writes it")
    decode = msgspec.json.Decoder(_with_ids_below(vocab_size)).decode
    with path.open("rb", buffering=_BUFFER) as file:
        for number, line in enumerate(file, start=1):
            if digest is not None:
                digest.update(line)
            try:
                sample = Sample(**msgspec.structs.asdict(decode(line)))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                sample = _read_again(path, number, line, vocab_size)
            if contradiction := _contradiction(sample):
                raise UserError(f"{path}:{number}", rule=f"is not a sample: {contradiction}", fix=_fix(path))
            yield sample


def key_digest(problem_id: str, sample_index: int) -> int:
    """A 64-bit digest of (problem id, sample index), which identify a sample in a run."""
    text = f"{sample_index}\0{problem_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def samples_manifest(run_dir: Path) -> Manifest:
    """The manifest of the samples. Raises ``UserError`` if the sampling stage has not published."""
    return read_manifest(run_dir / SAMPLES, stage=SAMPLES)


def sample_shards(run_dir: Path) -> list[Path]:
    """The files of samples, in order.

    Raises:
        UserError: the sampling stage has not published, or a shard is missing or empty.
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
                rule=f"{'is empty' if is_there else 'does not exist'}, and its manifest lists it with "
                f"{output['bytes']} bytes",
                fix=f"put it back, or remove {folder} and sample again",
            )
        shards.append(path)
    if not shards:
        raise UserError(
            f"folder {folder}", rule="its manifest names no shard-*.jsonl", fix="remove it and sample again"
        )
    return shards


@functools.cache
def _with_ids_below(vocab_size: int | None) -> type[msgspec.Struct]:
    """``Sample`` with bounds on its ids, which the decoder checks faster than Python does."""
    if vocab_size is None:
        return Sample
    ids = list[Annotated[int, msgspec.Meta(ge=0, lt=vocab_size)]]
    return msgspec.defstruct("SampleOfVocabulary", [(name, ids) for name in _IDS], bases=(Sample,), kw_only=True)


def _contradiction(sample: Sample) -> str:
    """Which fields of ``sample`` contradict each other; empty if none do."""
    if any("role" not in message or "content" not in message for message in sample.messages):
        return "a message has no role or no content"
    if sample.finish_reason == "skipped":
        return "it was skipped but has a response" if sample.response_token_ids or sample.response else ""
    if not sample.prompt_token_ids:
        return "prompt_token_ids is empty and finish_reason is not skipped"
    if not sample.response_token_ids:
        return "response_token_ids is empty and finish_reason is not skipped"
    return f"it has a skip_reason and its finish_reason is {sample.finish_reason}" if sample.skip_reason else ""


def _read_again(path: Path, number: int, line: bytes, vocab_size: int | None) -> Sample:
    try:
        record = parse_line(path, number, line)
    except UserError as error:
        raise UserError(error.what, rule=error.rule, fix=_fix(path)) from None
    try:
        sample = Sample.from_json(record)
    except UserError as error:
        raise UserError(f"{path}:{number}", rule=f"is not a sample: {error.rule}", fix=_fix(path)) from None
    for id_ in (*sample.prompt_token_ids, *sample.response_token_ids):
        if vocab_size is not None and not 0 <= id_ < vocab_size:
            raise UserError(
                f"{path}:{number} with token id {reprlib.repr(id_)}",
                rule=f"is outside the vocabulary of model.vocab_size = {vocab_size}",
                fix="name the model whose tokenizer made these ids",
            )
    return sample


def _fix(path: Path) -> str:
    return f"fix that line, or remove {path.parent} and sample again"
