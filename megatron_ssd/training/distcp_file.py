"""Writes the files of tensors of a torch_dist checkpoint, and hashes them meanwhile.

A ``.distcp`` file has ``torch.save`` archives and serialised objects one after another. Where each begins is in the
checkpoint's ``.metadata``, for which ``append`` returns the entries.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

_PIECE = 1 << 23  # bytes that are hashed and written at a time
_BUFFER = 1 << 18  # bytes; shorter writes are collected
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux has it


class DistcpFile(io.BufferedWriter):
    """A new file that is hashed in a second thread while it is written; closing it forces it to disk.

    While a tensor is hashed, the caller can prepare the next one, and the next ``append`` waits for the hash. So two
    tensors may be in memory.

    Raises:
        OSError: (every method that writes) the disk is full, for example.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._hashed = _HashedFile(path)
        super().__init__(self._hashed, _BUFFER)

    def append(self, index: MetadataIndex, value: Tensor | io.BytesIO, *, checksum: bool = True) -> WriteResult:
        """Append a contiguous tensor on the CPU, or an object that ``torch.save`` has serialised.

        Args:
            checksum: whether ``torch.save`` stores the CRC-32 of a tensor, which export compares. It takes 0.4 of the
                time of the hash.

        Returns:
            The entry for ``.metadata`` under ``index``.
        """
        self._hashed.hold(value)
        start = self.tell()
        default = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(checksum)  # without one, torch stores 0
        try:
            if isinstance(value, Tensor):
                torch.save(value, self)
            else:
                self.write(value.getbuffer())
        except RuntimeError:  # torch's error for any error while it writes
            if self._hashed.error is not None:
                raise self._hashed.error from None
            raise
        finally:
            torch.serialization.set_crc32_options(default)
        length = self.tell() - start
        return WriteResult(index=index, size_in_bytes=length, storage_data=_StorageInfo(self._name, start, length))

    def wait(self) -> None:
        """Return when everything is hashed, so that what was appended may change."""
        self._hashed.hold(None)

    def hexdigest(self) -> str:
        """SHA-256 of the closed file."""
        assert self.closed, "hashing may not be finished"
        return self._hashed.hash.hexdigest()


class _HashedFile(io.RawIOBase):
    """The file itself. The disk starts to write each piece at once, so that little is left to force at the end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.hash = hashlib.sha256()
        self.error: OSError | None = None
        self._file = path.open("xb", buffering=0)
        self._thread = ThreadPoolExecutor(1)  # one, so that hashing keeps the order of writing
        self._hashing: Future[None] | None = None  # the last piece
        self._held: object = None

    def hold(self, owner: object) -> None:
        """Keep ``owner`` of the bytes that are written next until they are hashed, and free the one before."""
        if self._hashing is not None:
            self._hashing.result()
        self._held = owner

    def writable(self) -> bool:
        """Whether it can be written."""
        return True

    def tell(self) -> int:
        """Bytes written."""
        return self._file.tell()

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        view = memoryview(data)
        view = memoryview(bytes(view)) if len(view) <= _BUFFER else view  # the buffer changes before it is hashed
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            self._hashing = self._thread.submit(self.hash.update, piece)
            try:
                while piece:
                    count = self._file.write(piece)
                    _start_writeback(self._file.fileno(), self._file.tell() - count, count)
                    piece = piece[count:]
            except OSError as error:
                self.error = error
                raise
        return len(view)

    def close(self) -> None:
        """Force the file to disk."""
        if self.closed:
            return
        try:
            self._thread.shutdown()  # waits until everything is hashed
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
            super().close()


def _start_writeback(descriptor: int, start: int, length: int) -> None:
    """Ask the kernel to begin writing to the disk, on Linux. It is free to refuse: closing waits for the disk."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, ctypes.c_int64(start), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)
