"""Shows what a data set contains, after a check of its files (.bin, .idx, manifest)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import FILE_NAME, Manifest, check_outputs, read_manifest
from megatron_ssd.config.tools import InspectConfig
from megatron_ssd.dataset.convert import IDS
from megatron_ssd.dataset.indexed import (
    DATASET_NAME,
    Index,
    check_ids,
    largest_id,
    mapped_ids,
    prefix_of,
    read_indexed,
)
from megatron_ssd.errors import UserError
from megatron_ssd.prompts.tokenizer import fast_tokenizer

_BAR = 50  # characters of the longest bar
_DIM, _GREEN, _PLAIN = "\x1b[2m", "\x1b[32m", "\x1b[0m"
_FIX = "make the data set again (tools/preprocess_data.py with replace=true)"

Decode = Callable[[NDArray[Any]], str]


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a data set. ``manifest`` is None for files that no stage published."""

    prefix: Path
    index: Index
    manifest: Manifest | None

    @property
    def are_pairs(self) -> bool:
        """Whether every document is [prompt, response]."""
        return self.index.num_documents > 0 and bool((np.diff(self.index.boundaries) == 2).all())

    @property
    def vocab_size(self) -> int | None:
        """The vocabulary size in the manifest, if any; all ids are below it."""
        return None if self.manifest is None else self.manifest.config.get("vocab_size")

    @property
    def names(self) -> Path:
        """The file whose line i names the sample of document i; a corpus has none."""
        return self.prefix.parent / IDS


def run_inspect(config: InspectConfig) -> None:
    """Check the data set and print what it contains.

    Raises:
        UserError: there is none, its files do not belong together, or the tokenizer does not load.
    """
    prefix = prefix_of(config.path) if config.path else Path(config.run_dir or "") / "dataset" / DATASET_NAME
    files = open_files(prefix)
    check_files(files, hashes=config.hashes)
    decode = _decoder(config)
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in (*summary(files, hashes=config.hashes), "", *histogram(files), ""):
        print(line)
    count = min(config.examples, files.index.num_documents)
    numbers = np.linspace(0, files.index.num_documents - 1, count).astype(int).tolist()
    for number, name in _names(files, numbers).items():
        shown = example(files, number, decode, name=name, coloured=coloured, max_characters=config.max_characters)
        print(f"{shown}\n")


def open_files(prefix: Path) -> DatasetFiles:
    """The data set at ``prefix``, with the manifest in its folder if that lists it.

    Raises:
        UserError: a file is missing, or .bin and .idx do not belong together.
    """
    manifest = read_manifest(prefix.parent) if (prefix.parent / FILE_NAME).is_file() else None
    if manifest is not None and f"{prefix.name}.idx" not in {output["path"] for output in manifest.outputs}:
        manifest = None
    return DatasetFiles(prefix, read_indexed(prefix), manifest)


def check_files(files: DatasetFiles, *, hashes: bool) -> None:
    """Compare the files with each other.

    Args:
        files: as ``open_files`` returns them, which has compared .bin and .idx.
        hashes: also read every file and compare its hash with the manifest's.

    Raises:
        UserError: names the first error.
    """
    manifest, folder = files.manifest, files.prefix.parent
    if manifest is not None:
        check_outputs(folder, manifest, fix=_FIX, hashes=False)
        _check_counts(files, manifest)
        _check_lines(files)
    check_ids(files.prefix, files.index, vocab_size=files.vocab_size)
    if manifest is not None and hashes:
        check_outputs(folder, manifest, fix=_FIX)


def _check_counts(files: DatasetFiles, manifest: Manifest) -> None:
    """Compare the counts of the manifest with the index."""
    lengths, found = files.index.lengths, {"documents": files.index.num_documents}
    found["tokens"] = int(lengths.sum(dtype=np.int64))
    if files.are_pairs:
        found["prompt_tokens"], found["response_tokens"] = (int(lengths[i::2].sum(dtype=np.int64)) for i in (0, 1))
    for name, count in found.items():
        if manifest.counts.get(name, count) != count:
            raise UserError(
                f"file {files.prefix}.idx",
                rule=f"counts {count} {name.replace('_', ' ')} but the manifest has {manifest.counts[name]}",
                fix=_FIX,
            )


def _check_lines(files: DatasetFiles) -> None:
    """Check that ``ids.jsonl``, if there is one, has a line per document."""
    if not files.names.is_file():
        return
    num_lines = sum(1 for _ in iter_jsonl(files.names))
    if num_lines != files.index.num_documents:
        raise UserError(
            f"file {files.names}", rule=f"has {num_lines} lines for {files.index.num_documents} documents", fix=_FIX
        )


def summary(files: DatasetFiles, *, hashes: bool) -> Iterator[str]:
    """Counts, one per line."""
    index, manifest = files.index, files.manifest
    per_document = "pairs of [prompt, response]" if files.are_pairs else f"{len(index.lengths):,} sequences"
    tokens = f"{index.lengths.sum(dtype=np.int64):,}"
    if files.are_pairs:
        prompts, responses = (index.lengths[i::2].sum(dtype=np.int64) for i in (0, 1))
        tokens += f", {prompts:,} of prompts and {responses:,} of responses"
    largest = None if files.vocab_size else largest_id(mapped_ids(files.prefix, index))
    yield _line("data set", str(files.prefix))
    yield _line("documents", f"{index.num_documents:,}, {per_document}")
    yield _line("tokens", tokens)
    yield _line("ids", f"{index.dtype.name}, " + (f"all below {files.vocab_size:,}" if largest is None else
                                                  f"largest {largest:,}"))  # fmt: skip
    if index.modes is not None:
        yield _line("modes", f"multimodal, {np.count_nonzero(index.modes):,} sequences are not text")
    if manifest is None:
        yield _line("checked", ".bin against .idx; there is no manifest in this folder")
        return
    counts, dropped = manifest.counts, manifest.dropped
    if "length_capped" in counts:
        yield _line("length-capped", f"{counts['length_capped']:,} of the responses sampled have no end token")
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items())) or "none"
        yield _line("dropped", f"{sum(dropped.values()):,} of {counts['samples']:,} samples: {reasons}")
    if "differing_samples" in counts:
        yield _line("retokenized", f"{counts['differing_samples']:,} responses differ from what was sampled, in "
                                   f"{counts['differing_tokens']:,} tokens (differences.jsonl)")  # fmt: skip
    yield _line("checked", f".bin against .idx against manifest, {'with' if hashes else 'without'} hashes")


def histogram(files: DatasetFiles) -> Iterator[str]:
    """Lengths as text bars, in bins that double in size."""
    index = files.index
    before = np.concatenate(([0], np.cumsum(index.lengths, dtype=np.int64)))[index.boundaries]
    lengths, what = np.diff(before), "documents"
    if files.are_pairs:
        lengths, what = index.lengths[1::2].astype(np.int64), "responses"
    if not len(lengths):
        return
    middle, high = np.percentile(lengths, [50, 95]).astype(int).tolist()
    yield f"length of {what} in tokens: median {middle:,}, 95 % up to {high:,}, longest {lengths.max():,}"
    bins = np.where(lengths > 0, np.log2(np.maximum(lengths, 1)).astype(int) + 1, 0)
    counts = np.bincount(bins)
    for step in range(int(bins.min()), len(counts)):
        first, last = (0, 0) if step == 0 else (1 << (step - 1), (1 << step) - 1)
        bar = "#" * -(-int(counts[step]) * _BAR // int(counts.max()))
        yield f"{first:>9,} to {last:>9,}  {counts[step]:>10,}  {bar}".rstrip()


def example(files: DatasetFiles, number: int, decode: Decode, *, name: str, coloured: bool, max_characters: int) -> str:
    """A document as text: the prompt dim, and what carries loss green. Without colour, each has a heading."""
    boundaries, lengths = files.index.boundaries, files.index.lengths
    sequences = range(int(boundaries[number]), int(boundaries[number + 1]))
    ids, starts = mapped_ids(files.prefix, files.index), files.index.offsets // files.index.dtype.itemsize
    texts = [_shown(decode(ids[starts[i] : starts[i] + lengths[i]]), max_characters) for i in sequences]
    sizes = " + ".join(f"{lengths[sequence]:,}" for sequence in sequences)
    lines = [f"document {number}{name}: {sizes} tokens"]
    for index, text in enumerate(texts):
        is_prompt = files.are_pairs and index == 0
        if coloured:
            lines.append(f"{_DIM if is_prompt else _GREEN}{text}{_PLAIN}")
        else:
            lines += [f"[{'prompt, no loss' if is_prompt else 'loss'}]", text]
    return "\n".join(lines)


def _names(files: DatasetFiles, numbers: list[int]) -> dict[int, str]:
    """The sample of each document, as text; empty if it is not known."""
    names = dict.fromkeys(numbers, "")
    if files.manifest is not None and files.names.is_file():
        for number, record in enumerate(iter_jsonl(files.names)):
            if number in names:
                names[number] = f", sample {record['sample_index']} of problem {record['problem_id']}"
    return names


def _shown(text: str, max_characters: int) -> str:
    """Printable text, shortened in the middle: a response may contain characters that control a terminal."""
    if len(text) > max_characters:
        head, left_out = max_characters - max_characters // 4, len(text) - max_characters
        text = f"{text[:head]}\n... {left_out:,} characters ...\n{text[len(text) - max_characters // 4 :]}"
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


def _decoder(config: InspectConfig) -> Decode:
    """Decodes ids with a tokenizer, special tokens included; without a tokenizer, the ids are the text."""
    folders = [Path(config.run_dir or "") / name for name in ("tokenizer", "export")] if config.run_dir else []
    found = next((folder for folder in folders if (folder / "tokenizer_config.json").is_file()), None)
    folder = Path(config.tokenizer) if config.tokenizer else found
    if folder is None:
        return lambda ids: " ".join(map(str, ids.tolist()))
    tokenizer = fast_tokenizer(folder)
    return lambda ids: str(tokenizer.decode(ids.tolist(), skip_special_tokens=False))


def _line(name: str, text: str) -> str:
    return f"{name:15}{text}"
