"""Writes a Megatron-Core checkpoint of weights, one tensor at a time.

The format is that of ``torch.distributed.checkpoint`` (torch_dist): ``.distcp`` files of concatenated ``torch.save``
archives, and ``.metadata`` with the offset of each piece of each tensor. Megatron-Core's and torch's own writers need
the full model in memory; this one needs one tensor, and the previous one until it is hashed. The result is what one
process would write, so that any layout loads it.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

_FILE_BYTES = 4_000_000_000  # size at which a new file starts
_SMALL = 1 << 16  # bytes; shorter writes are copied for the hash


def write_checkpoint(
    folder: Path,
    full: FullModel,
    pieces_of: Callable[[FullTensor], Iterable[Tensor]],
) -> dict[str, str]:
    """Write every tensor of ``full``, and the objects that Megatron-Core loads with them, to the new ``folder``.

    Args:
        folder: must not exist.
        full: names, keys and shapes.
        pieces_of: the value of a tensor, in one piece or split along its first dimension, each piece in the type to
            write. Called once per tensor, in order.

    Returns:
        SHA-256 of the large files by name, computed while they are written.

    Raises:
        OSError: the disk is full.
    """
    folder.mkdir(parents=True)
    tensors: dict[str, Any] = {}
    results: list[WriteResult] = []
    hashes: dict[str, str] = {}
    todo = list(full.tensors)
    bar: Any = progress(desc=f"writing {folder.name}", unit="weight", total=len(todo))
    with bar:
        while todo:
            name = f"__0_{len(hashes)}.distcp"
            with _HashedFile(folder / name) as file:
                if not hashes:
                    results += _write_objects(file, name, full.object_keys)
                while todo and file.tell() < _FILE_BYTES:
                    tensor = todo.pop(0)
                    results += _write_tensor(file, name, tensor, pieces_of(tensor), tensors)
                    bar.update()
            hashes[name] = file.hexdigest()
    objects = {key: BytesStorageMetadata() for key in full.object_keys}
    FileSystemWriter(folder).finish(Metadata(state_dict_metadata={**tensors, **objects}), [results])
    torch.save({}, folder / "common.pt")  # the state common to all ranks, which weights alone do not have
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))
    return hashes


def _write_tensor(
    file: _HashedFile, name: str, tensor: FullTensor, pieces: Iterable[Tensor], tensors: dict[str, Any]
) -> Iterator[WriteResult]:
    """Append one tensor to ``file`` and add its pieces to ``tensors``, the metadata by key."""
    leading = (1,) * len(tensor.index)
    start = 0  # along the first dimension
    for piece in pieces:
        assert tuple(piece.shape[1:]) == tensor.shape[1:], tensor.name
        sizes = torch.Size((*leading, *piece.shape))
        chunk = ChunkStorageMetadata(torch.Size((*tensor.index, start, *(0 for _ in tensor.shape[1:]))), sizes)
        begin = file.tell()
        _save(piece.contiguous().view(sizes), file)
        if tensor.key not in tensors:
            properties = TensorProperties(dtype=piece.dtype)
            tensors[tensor.key] = TensorStorageMetadata(
                properties, torch.Size((*tensor.num_leading, *tensor.shape)), []
            )
        chunks = tensors[tensor.key].chunks
        yield _result(MetadataIndex(tensor.key, chunk.offsets, len(chunks)), name, begin, file.tell() - begin)
        chunks.append(chunk)
        start += len(piece)
    assert start == tensor.shape[0], tensor.name


def _write_objects(file: _HashedFile, name: str, keys: tuple[str, ...]) -> list[WriteResult]:
    """Append an empty object per key in Megatron-Core's form: a list with the one object of a rank."""
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
    except RuntimeError:  # torch's error for any error while it writes
        if file.error is not None:
            raise file.error from None
        raise
    finally:
        file.holding = None


class _HashedFile(io.RawIOBase):
    """A new file that is hashed while it is written sequentially; closing it forces it to disk.

    A second thread hashes, at a third of the speed of writing. While it hashes a tensor, the next one is read, and the
    next write waits for the hash. So two tensors may be in memory.

    ``holding`` is the owner of the data being written; it is kept alive until it is hashed.
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
        """Whether it can be written."""
        return True

    def tell(self) -> int:
        """Bytes written."""
        return self._position

    def hexdigest(self) -> str:
        """SHA-256 of what was written."""
        assert self.closed, "hashing may not be finished"
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
            self._thread.shutdown()  # waits until everything is hashed
            self._hashing = None
            os.fsync(self._file.fileno())
            self._file.close()
        super().close()

    def _wait(self) -> None:
        """Wait until the last tensor is hashed, and free it."""
        if self._hashing is not None:
            self._hashing[0].result()
            self._hashing = None
