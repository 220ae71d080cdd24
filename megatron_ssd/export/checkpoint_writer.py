"""A Megatron-Core checkpoint of weights alone, written one weight after another.

The format is that of ``torch.distributed.checkpoint`` (torch_dist): ``.distcp`` files with one ``torch.save`` record
after another, and ``.metadata``, which says where each piece of each tensor stands. Megatron-Core's own writer, and
torch's, take a whole model; here one weight is in hand, and the one before it until it is hashed. What is written is
what one process would have written, so that any layout loads it.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from megatron_ssd.export.full_model import FullModel, FullTensor
from megatron_ssd.progress import progress

FILE_BYTES = 4_000_000_000  # after which a new file is begun
_SMALL = 1 << 16  # bytes; what is shorter is copied for the hash


@dataclass(frozen=True)
class WrittenFile:
    """Size and SHA-256 of a file, known without reading it again."""

    bytes: int
    sha256: str


def write_checkpoint(
    folder: Path,
    whole: FullModel,
    pieces_of: Callable[[FullTensor], Iterable[Tensor]],
    *,
    file_bytes: int = FILE_BYTES,
) -> dict[str, WrittenFile]:
    """Write every weight of ``whole`` and what Megatron-Core's loading needs beside them into the new ``folder``.

    Args:
        folder: does not exist yet.
        whole: names, keys and shapes.
        pieces_of: the value of a weight, in one piece or cut along its first dimension, each piece in the type that is
            to be kept. Asked once for each weight, in order.
        file_bytes: size from which on a new file is begun.

    Returns:
        The large files by name.

    Raises:
        OSError: the disk is full.
    """
    folder.mkdir(parents=True)
    tensors: dict[str, Any] = {}
    results: list[WriteResult] = []
    files: dict[str, WrittenFile] = {}
    todo = list(whole.weights)
    bar: Any = progress(desc=f"writing {folder.name}", unit="weight", total=len(todo))
    with bar:
        while todo:
            name = f"__0_{len(files)}.distcp"
            with _HashedFile(folder / name) as file:
                if not files:
                    results += _write_objects(file, name, whole.object_keys)
                while todo and file.tell() < file_bytes:
                    weight = todo.pop(0)
                    results += _write_weight(file, name, weight, pieces_of(weight), tensors)
                    bar.update()
            files[name] = WrittenFile(file.tell(), file.hexdigest())
    objects = {key: BytesStorageMetadata() for key in whole.object_keys}
    FileSystemWriter(folder).finish(Metadata(state_dict_metadata={**tensors, **objects}), [results])
    torch.save({}, folder / "common.pt")  # what is the same for all ranks: nothing, in a checkpoint of weights
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))
    return files


def _write_weight(
    file: _HashedFile, name: str, weight: FullTensor, pieces: Iterable[Tensor], tensors: dict[str, Any]
) -> Iterator[WriteResult]:
    """Append one weight to ``file`` and enter its place into ``tensors``, the metadata by key."""
    leading = (1,) * len(weight.place)
    row = 0
    for piece in pieces:
        assert tuple(piece.shape[1:]) == weight.shape[1:], weight.name
        sizes = torch.Size((*leading, *piece.shape))
        chunk = ChunkStorageMetadata(torch.Size((*weight.place, row, *(0 for _ in weight.shape[1:]))), sizes)
        start = file.tell()
        _save(piece.contiguous().view(sizes), file)
        if weight.key not in tensors:
            properties = TensorProperties(dtype=piece.dtype)
            tensors[weight.key] = TensorStorageMetadata(properties, torch.Size((*weight.places, *weight.shape)), [])
        chunks = tensors[weight.key].chunks
        yield _result(MetadataIndex(weight.key, chunk.offsets, len(chunks)), name, start, file.tell() - start)
        chunks.append(chunk)
        row += len(piece)
    assert row == weight.shape[0], weight.name


def _write_objects(file: _HashedFile, name: str, keys: tuple[str, ...]) -> list[WriteResult]:
    """Append an empty object for each key, in the form of Megatron-Core: a list of the one object that a rank has."""
    stream = io.BytesIO()
    torch.save([None], stream)
    results = []
    for key in keys:
        results.append(_result(MetadataIndex(key), name, file.tell(), len(stream.getbuffer())))
        file.write(stream.getbuffer())
    return results


def _result(index: MetadataIndex, name: str, start: int, length: int) -> WriteResult:
    return WriteResult(index=index, size_in_bytes=length, storage_data=_StorageInfo(name, start, length))


def _save(value: Tensor, file: _HashedFile) -> None:
    file.holding = value
    try:
        torch.save(value, cast("Any", file))
    except RuntimeError:  # what torch makes of an error in the middle of a record
        if file.error is not None:
            raise file.error from None
        raise
    finally:
        file.holding = None


class _HashedFile(io.RawIOBase):
    """A new file that is hashed while it is written from start to end; on disk when closed.

    A second thread hashes, at a third of the speed of writing: while it is busy with a tensor, the next one is read and
    the hash is waited for only then. So two tensors may be in memory.

    ``holding`` is the owner of what is being written, kept alive until it is hashed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self.holding: object = None
        self._file = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)  # one, so that hashing keeps the order of writing
        self._hashing: tuple[Future[None], object] | None = None
        self._position = 0

    def writable(self) -> bool:
        """As files say it."""
        return True

    def tell(self) -> int:
        """Bytes written."""
        return self._position

    def hexdigest(self) -> str:
        """SHA-256 of what was written."""
        assert self.closed, "not all may be hashed yet"
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        """Append all of ``data``."""
        view = memoryview(data).cast("B")
        size = len(view)
        if size > _SMALL:
            self._wait()
            self._hashing = (self._thread.submit(self._hash.update, view), self.holding)
        else:
            self._thread.submit(self._hash.update, bytes(view))
        try:
            rest = view
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        self._position += size
        return size

    def close(self) -> None:
        """Force the file to disk."""
        if not self.closed:
            self._thread.shutdown()  # after all is hashed
            self._hashing = None
            os.fsync(self._file.fileno())
            self._file.close()
        super().close()

    def _wait(self) -> None:
        """Until the last tensor is hashed, and may go."""
        if self._hashing is not None:
            self._hashing[0].result()
            self._hashing = None
