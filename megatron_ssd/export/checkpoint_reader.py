"""Reads a Megatron-Core checkpoint of any layout, one full tensor at a time.

``.metadata`` has the offset of each piece of each tensor in the ``.distcp`` files. A tensor is assembled from its
pieces; nothing else is read. Each piece is compared with the checksum (CRC-32) that ``torch.save`` stored with it,
which ``torch.load`` does not do.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from megatron_ssd.config.training import Weights
from megatron_ssd.errors import UserError
from megatron_ssd.export.full_model import FullModel, FullTensor
from megatron_ssd.models.hf_checkpoint import refuse_weights
from megatron_ssd.models.hf_weights import Shape
from megatron_ssd.training.step import EMA_PREFIX

_EMA = f"{EMA_PREFIX}."
_NO_WEIGHTS = ("optimizer.", _EMA)  # prefixes of keys that are not the model's
# Errors of unpickling damaged bytes.
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
    """The weights in checkpoint folder ``path``. Opening reads the metadata only, and compares it with ``full``.

    Args:
        path: ``iter_...``.
        full: names and shapes of the model's tensors.
        weights: ``ema`` for the moving average of the weights.

    Raises:
        UserError: the checkpoint cannot be read, has no such weights, or is of another model.
    """

    def __init__(self, path: Path, full: FullModel, *, weights: Weights = "model") -> None:
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
                rule="has no moving average of the weights",
                fix="export the weights themselves (weights=model), or train with training.ema_decay set",
            )
        self._chunks: dict[str, dict[Shape, list[ChunkStorageMetadata]]] = {}
        self._check(full)

    def dtype(self, tensor: FullTensor) -> torch.dtype:
        """Type of a tensor in the checkpoint."""
        dtype: torch.dtype = self._tensors[tensor.key].properties.dtype
        return dtype

    def _check(self, full: FullModel) -> None:
        """Raise ``UserError`` for missing, unknown and misshapen tensors. It names the first few of each."""
        expected = {tensor.key: tensor for tensor in full.tensors}
        misshapen = [
            f"{key} has shape {list(found)} and the model needs {[*tensor.num_leading, *tensor.shape]}"
            for key, tensor in expected.items()
            if key in self._tensors and not _fits(found := tuple(self._tensors[key].size), tensor)
        ]
        refuse_weights(
            f"checkpoint {self.path}",
            missing=expected.keys() - self._tensors.keys(),
            unknown=self._tensors.keys() - expected.keys(),
            misshapen=misshapen,
            fix="name the model that the checkpoint was trained as",
        )

    def read(self, tensor: FullTensor, dtype: torch.dtype) -> Tensor:
        """The full tensor in ``dtype``, without rows that pad a vocabulary.

        Raises:
            UserError: a part of it is not in the checkpoint, or a file is damaged.
        """
        result: Tensor | None = None
        missing = tensor.numel
        for chunk in self._chunks_at(tensor):
            start, inside = _overlap(chunk, tensor)
            if any(part.start >= part.stop for part in inside):
                continue  # only rows of padding
            piece = self._load(tensor.key, chunk).view(chunk.sizes[len(tensor.index) :])[inside]
            missing -= piece.numel()
            if tuple(piece.shape) == tensor.shape:
                return piece.to(dtype)
            if result is None:
                result = torch.empty(tensor.shape, dtype=dtype)
            result[tuple(slice(at, at + size) for at, size in zip(start, piece.shape, strict=True))] = piece
        if result is None or missing:
            raise UserError(
                f"checkpoint {self.path}",
                rule=f"its files lack {missing} of the {tensor.numel} values of {tensor.key} {list(tensor.index)}",
                fix="use another checkpoint",
            )
        return result

    def _chunks_at(self, tensor: FullTensor) -> Sequence[ChunkStorageMetadata]:
        """The stored pieces of ``tensor``: those at its index along the leading axes."""
        leading = len(tensor.index)
        if tensor.key not in self._chunks:
            by_index: dict[Shape, list[ChunkStorageMetadata]] = defaultdict(list)
            for chunk in self._tensors[tensor.key].chunks:
                assert all(size == 1 for size in chunk.sizes[:leading]), f"{tensor.key}: pieces span several layers"
                by_index[tuple(chunk.offsets[:leading])].append(chunk)
            self._chunks[tensor.key] = by_index
        return self._chunks[tensor.key].get(tensor.index, [])

    def _load(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        """One stored piece."""
        key = self._prefix + key
        stored = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
        path = self.path / stored.relative_path
        try:
            with path.open("rb", buffering=0) as file:
                record = _FileSlice(file, stored.offset, stored.length)
                sums = _checksums(record)
                record.seek(0)
                piece = torch.load(cast("Any", record), map_location="cpu", weights_only=True)
        except (*_UNREADABLE, RuntimeError, zipfile.BadZipFile) as error:
            raise _broken(path, f"{key} cannot be read: {error}") from None
        if not isinstance(piece, Tensor) or piece.shape != chunk.sizes or _checksum(piece) not in sums:
            raise _broken(path, f"its data of {key} differs from what was written")
        return piece


def _overlap(chunk: ChunkStorageMetadata, tensor: FullTensor) -> tuple[list[int], tuple[slice, ...]]:
    """Where in ``tensor`` the data of ``chunk`` starts, and which slices of ``chunk`` belong to it."""
    leading = len(tensor.index)
    offsets, sizes = chunk.offsets[leading:], chunk.sizes[leading:]
    inside = (
        slice(0, min(offset + size, length) - offset)
        for offset, size, length in zip(offsets, sizes, tensor.shape, strict=True)
    )
    return list(offsets), tuple(inside)


def _fits(found: Shape, tensor: FullTensor) -> bool:
    expected = (*tensor.num_leading, *tensor.shape)
    return found == expected or (tensor.padded and found[1:] == expected[1:] and found[0] >= expected[0])


def _read_metadata(path: Path) -> Metadata:
    if not (path / "metadata.json").is_file():
        raise UserError(f"folder {path}", rule="is not a checkpoint of Megatron-Core (it has no metadata.json)",
                        fix="name a folder iter_... or one that contains some")  # fmt: skip
    try:
        return FileSystemReader(path).read_metadata()
    except _UNREADABLE as error:
        raise _broken(path / ".metadata", f"it cannot be read: {error}") from None


class _FileSlice(io.RawIOBase):
    """``length`` bytes of ``file`` from ``offset`` on, as a read-only file.

    torch's own class for this cannot seek from the end, which ``zipfile`` does.
    """

    def __init__(self, file: io.FileIO, offset: int, length: int) -> None:
        super().__init__()
        self._file, self._offset, self._length = file, offset, length
        self._position = 0

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be sought."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to ``offset`` from the start, the current position or the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("before the start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with what is left, at most."""
        view = memoryview(buffer).cast("B")[: max(self._length - self._position, 0)]
        self._file.seek(self._offset + self._position)
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        self._position += done
        return done


def _checksums(record: _FileSlice) -> set[int]:
    """CRC-32 of the raw values in a ``torch.save`` archive, which is a ZIP file."""
    with zipfile.ZipFile(cast("Any", record)) as archive:
        return {entry.CRC for entry in archive.infolist() if "/data/" in entry.filename}


def _checksum(piece: Tensor) -> int:
    return zlib.crc32(piece.reshape(-1).view(torch.uint8).numpy().data)


def _broken(path: Path, why: str) -> UserError:
    return UserError(f"file {path}", rule=why, fix="the checkpoint is damaged: use another one")
