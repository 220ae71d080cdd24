"""A Megatron-Core checkpoint of weights alone, written one weight at a time.

The format is that of ``torch.distributed.checkpoint`` (torch_dist): ``.distcp`` files with one ``torch.save`` record
after another, and ``.metadata``, which says where each piece of each tensor stands. Megatron-Core's own writer, and
torch's, take a whole model; here one weight is in hand at a time. What is written is what one process would have
written, so that any layout loads it.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

from megatron_ssd.models.whole_model import WholeModel, WholeWeight
from megatron_ssd.progress import progress

FILE_BYTES = 4_000_000_000  # after which a new file is begun
_HASH_INLINE = 1 << 16  # bytes; what is shorter is hashed at once


@dataclass(frozen=True)
class WrittenFile:
    """Size and SHA-256 of a file, known without reading it again."""

    bytes: int
    sha256: str


def write_checkpoint(
    folder: Path, whole: WholeModel, value_of: Callable[[WholeWeight], Tensor], *, file_bytes: int = FILE_BYTES
) -> dict[str, WrittenFile]:
    """Write every weight of ``whole`` and what Megatron-Core's loading needs beside them into the new ``folder``.

    Args:
        folder: does not exist yet.
        whole: names, keys and shapes.
        value_of: the value of a weight, in the type that is to be kept. Asked once for each, in order.
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
                    results.append(_write_weight(file, name, weight, value_of(weight), tensors))
                    bar.update()
            files[name] = WrittenFile(file.tell(), file.hexdigest())
    objects = {key: BytesStorageMetadata() for key in whole.object_keys}
    FileSystemWriter(folder).finish(Metadata(state_dict_metadata={**tensors, **objects}), [results])
    torch.save({}, folder / "common.pt")  # what is the same for all ranks: nothing, in a checkpoint of weights
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))
    return files


def _write_weight(
    file: _HashedFile, name: str, weight: WholeWeight, value: Tensor, tensors: dict[str, Any]
) -> WriteResult:
    """Append one weight to ``file`` and enter its place into ``tensors``, the metadata by key."""
    assert tuple(value.shape) == weight.shape, weight.name
    leading = (1,) * len(weight.place)
    start = file.tell()
    _save(value.contiguous().view(*leading, *weight.shape), file)
    chunk = ChunkStorageMetadata(
        offsets=torch.Size((*weight.place, *(0 for _ in weight.shape))), sizes=torch.Size((*leading, *weight.shape))
    )
    entry = tensors.setdefault(
        weight.key,
        TensorStorageMetadata(
            properties=TensorProperties(dtype=value.dtype), size=torch.Size((*weight.places, *weight.shape)), chunks=[]
        ),
    )
    index = MetadataIndex(weight.key, chunk.offsets, index=len(entry.chunks))
    entry.chunks.append(chunk)
    return _result(index, name, start, file.tell() - start)


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
    try:
        torch.save(value, cast("Any", file))
    except RuntimeError:  # what torch makes of an error in the middle of a record
        if file.error is not None:
            raise file.error from None
        raise


class _HashedFile(io.RawIOBase):
    """A new file that is hashed, in a second thread, while it is written from start to end; on disk when closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._file = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._position = 0

    def writable(self) -> bool:
        """As files say it."""
        return True

    def tell(self) -> int:
        """Bytes written."""
        return self._position

    def hexdigest(self) -> str:
        """SHA-256 of what was written."""
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        """Append all of ``data``."""
        view = memoryview(data).cast("B")
        size = len(view)
        hashed = self._thread.submit(self._hash.update, view) if size > _HASH_INLINE else None
        if hashed is None:
            self._hash.update(view)
        try:
            rest = view
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        finally:
            if hashed is not None:
                hashed.result()  # the bytes are the caller's again from here on
        self._position += size
        return size

    def close(self) -> None:
        """Force the file to disk."""
        if not self.closed:
            os.fsync(self._file.fileno())
            self._file.close()
            self._thread.shutdown()
        super().close()
