"""Weights of a Megatron-Core checkpoint, one whole weight at a time, whatever layout wrote it.

``.metadata`` says where each piece of each tensor stands in the ``.distcp`` files. A weight is put together from the
pieces that lie in it; optimizer state and the weights of other layers are not touched. Each piece is compared with the
checksum (CRC-32) that ``torch.save`` stored with it and that ``torch.load`` does not look at.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from megatron_ssd.config.export import Weights
from megatron_ssd.errors import UserError
from megatron_ssd.export.full_model import FullModel, FullTensor
from megatron_ssd.models.hf_checkpoint import refuse_weights
from megatron_ssd.models.hf_folder import Shape
from megatron_ssd.training.checkpoint_folder import (
    FACTS_FILE,
    BrokenCheckpointError,
    checkpoint_path,
    list_checkpoints,
    read_facts,
    reading,
)
from megatron_ssd.training.ema import PREFIX as EMA_PREFIX

_EMA = f"{EMA_PREFIX}."
_NO_WEIGHTS = ("optimizer.", _EMA)  # keys of tensors that are none of the model's
# What unpickling of damaged bytes comes to.
_UNREADABLE = (
    OSError,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


class CheckpointReader:
    """The weights in checkpoint folder ``path``. Opening reads the metadata only.

    Args:
        path: ``iter_...``.
        weights: ``ema`` for the moving average of the weights.

    Raises:
        UserError: there is no readable checkpoint, or no weights of that kind in it.
    """

    def __init__(self, path: Path, *, weights: Weights = "model") -> None:
        self.path = path
        self._prefix = prefix = _EMA if weights == "ema" else ""
        self._metadata = _read_metadata(path)
        self._tensors = {
            key.removeprefix(prefix): value
            for key, value in self._metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata)
            and (key.startswith(prefix) if prefix else not key.startswith(_NO_WEIGHTS))
        }
        if prefix and not self._tensors:
            raise UserError(
                f"checkpoint {path}",
                rule="holds no moving average of the weights",
                fix="export the weights themselves (weights=model), or train with training.ema_decay set",
            )
        self._chunks: dict[str, dict[Shape, list[ChunkStorageMetadata]]] = {}

    def dtype(self, weight: FullTensor) -> torch.dtype:
        """Type that the checkpoint holds a weight in."""
        dtype: torch.dtype = self._tensors[weight.key].properties.dtype
        return dtype

    def check(self, whole: FullModel) -> None:
        """Compare names and shapes with ``whole``.

        Raises:
            UserError: names what is missing, unknown or misshapen, the first few of each.
        """
        wanted = {weight.key: weight for weight in whole.weights}
        misshapen = [
            f"{key} has shape {list(found)} and the model wants {[*weight.places, *weight.shape]}"
            for key, weight in wanted.items()
            if key in self._tensors and not _fits(found := tuple(self._tensors[key].size), weight)
        ]
        refuse_weights(
            f"checkpoint {self.path}",
            missing=wanted.keys() - self._tensors.keys(),
            unknown=self._tensors.keys() - wanted.keys(),
            misshapen=misshapen,
            fix="name the model that the checkpoint was trained as",
        )

    def read(self, weight: FullTensor, dtype: torch.dtype) -> Tensor:
        """The whole weight in ``dtype``, without rows that pad a vocabulary.

        Raises:
            UserError: a part of it is not in the checkpoint, or a file is not what was written.
        """
        result: Tensor | None = None
        missing = weight.numel
        for chunk in self._chunks_at(weight):
            start, inside = _overlap(chunk, weight)
            if any(part.start >= part.stop for part in inside):
                continue  # rows of padding alone
            piece = self._load(weight.key, chunk).view(chunk.sizes[len(weight.place) :])[inside]
            missing -= piece.numel()
            if tuple(piece.shape) == weight.shape:
                return piece.to(dtype)
            if result is None:
                result = torch.empty(weight.shape, dtype=dtype)
            result[tuple(slice(at, at + size) for at, size in zip(start, piece.shape, strict=True))] = piece
        if result is None or missing:
            raise UserError(
                f"checkpoint {self.path}",
                rule=f"no file of it holds {missing} of the {weight.numel} values of {weight.key} {list(weight.place)}",
                fix="use another checkpoint",
            )
        return result

    def _chunks_at(self, weight: FullTensor) -> Sequence[ChunkStorageMetadata]:
        """The stored pieces of ``weight``: those at its place along the leading axes."""
        leading = len(weight.place)
        if weight.key not in self._chunks:
            by_place: dict[Shape, list[ChunkStorageMetadata]] = defaultdict(list)
            for chunk in self._tensors[weight.key].chunks:
                assert all(size == 1 for size in chunk.sizes[:leading]), f"{weight.key}: layers written together"
                by_place[tuple(chunk.offsets[:leading])].append(chunk)
            self._chunks[weight.key] = by_place
        return self._chunks[weight.key].get(weight.place, [])

    def _load(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        """One piece as it was written."""
        key = self._prefix + key
        stored = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
        path = self.path / stored.relative_path
        try:
            with path.open("rb", buffering=0) as file:
                record = _Record(file, stored.offset, stored.length)
                sums = _checksums(record)
                record.seek(0)
                piece = torch.load(cast("Any", record), map_location="cpu", weights_only=True)
        except (*_UNREADABLE, RuntimeError, zipfile.BadZipFile) as error:
            raise _broken(path, f"{key} cannot be read: {error}") from None
        if not isinstance(piece, Tensor) or piece.shape != chunk.sizes or _checksum(piece) not in sums:
            raise _broken(path, f"what it holds of {key} is not what was written")
        return piece


def _overlap(chunk: ChunkStorageMetadata, weight: FullTensor) -> tuple[list[int], tuple[slice, ...]]:
    """Where in ``weight`` its part of ``chunk`` begins, and which part of ``chunk`` that is."""
    leading = len(weight.place)
    offsets, sizes = chunk.offsets[leading:], chunk.sizes[leading:]
    inside = (
        slice(0, min(offset + size, length) - offset)
        for offset, size, length in zip(offsets, sizes, weight.shape, strict=True)
    )
    return list(offsets), tuple(inside)


def find_checkpoint(folder: Path, iteration: int | None) -> Path:
    """The checkpoint of ``iteration`` below ``folder``, or the newest, after its files were looked for.

    Raises:
        UserError: there is none, or a file of it is missing or has another size.
    """
    found = dict(list_checkpoints(folder))
    if not found:
        raise UserError(f"folder {folder}", rule="holds no checkpoint (iter_...)",
                        fix="run launch/train.py to its first checkpoint, or name another folder")  # fmt: skip
    if iteration is not None and iteration not in found:
        raise UserError(
            f"iteration = {iteration}",
            rule=f"{folder} holds no {checkpoint_path(folder, iteration).name}",
            fix=f"choose one of {', '.join(map(str, sorted(found)))}",
        )
    path = found[max(found) if iteration is None else iteration]
    check_files(path)
    return path


def held(path: Path) -> AbstractContextManager[None]:
    """While entered, no training run that goes on beside this process removes checkpoint ``path``."""
    return reading(path) if (path / FACTS_FILE).is_file() else nullcontext()


def check_files(path: Path) -> None:
    """Compare names and sizes of a checkpoint's files with its ``checkpoint.json``, where it has one.

    Raises:
        UserError: a file is missing or has another size.
    """
    if not (path / FACTS_FILE).is_file():
        return  # Megatron-LM's, for example; what its files lack is seen when they are read
    try:
        read_facts(path)
    except BrokenCheckpointError as error:
        raise UserError(error.what, rule=error.rule, fix="use another checkpoint") from None


def _fits(found: Shape, weight: FullTensor) -> bool:
    wanted = (*weight.places, *weight.shape)
    return found == wanted or (weight.padded and found[1:] == wanted[1:] and found[0] >= wanted[0])


def _read_metadata(path: Path) -> Metadata:
    if not (path / "metadata.json").is_file():
        raise UserError(f"folder {path}", rule="is no checkpoint of Megatron-Core (it has no metadata.json)",
                        fix="name a folder iter_... or one that holds some")  # fmt: skip
    try:
        return FileSystemReader(path).read_metadata()
    except _UNREADABLE as error:
        raise _broken(path / ".metadata", f"it cannot be read: {error}") from None


class _Record(io.RawIOBase):
    """``length`` bytes of ``file`` from ``offset`` on, as a file of their own."""

    def __init__(self, file: io.FileIO, offset: int, length: int) -> None:
        super().__init__()
        self._file, self._offset, self._length = file, offset, length
        self._position = 0

    def readable(self) -> bool:
        """As files say it."""
        return True

    def seekable(self) -> bool:
        """As files say it."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to ``offset`` from the start, from here or from the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("before the start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as there is something."""
        view = memoryview(buffer).cast("B")[: max(self._length - self._position, 0)]
        self._file.seek(self._offset + self._position)
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        self._position += done
        return done


def _checksums(record: _Record) -> set[int]:
    """CRC-32 of the raw values in a ``torch.save`` record, which is a ZIP archive."""
    with zipfile.ZipFile(cast("Any", record)) as archive:
        return {entry.CRC for entry in archive.infolist() if "/data/" in entry.filename}


def _checksum(piece: Tensor) -> int:
    return zlib.crc32(piece.reshape(-1).view(torch.uint8).numpy().data)


def _broken(path: Path, why: str) -> UserError:
    return UserError(f"file {path}", rule=why, fix="the checkpoint is damaged: use another one")
