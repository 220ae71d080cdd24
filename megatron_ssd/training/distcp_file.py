"""Writes the files of tensors of a torch_dist checkpoint, and hashes them meanwhile.

A ``.distcp`` file has ``torch.save`` archives and serialised objects one after another. Where each begins is in the
checkpoint's ``.metadata``, for which ``append`` returns the entries.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

_PIECE = 1 << 22  # bytes that are hashed and written at a time; O_DIRECT wants a multiple of the disk's blocks
_O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it


class DistcpFile(io.RawIOBase):
    """A new file that is hashed and written in two other threads; closing it forces it to disk.

    ``append`` copies a value, which may change afterwards. The copy also has the alignment with which the disk can take
    it directly (O_DIRECT): to pass it through the kernel's page cache takes more of the CPU and of the memory's
    bandwidth than everything else here, at the expense of training. A file system that does not allow this gets the
    file through the page cache.

    Raises:
        OSError: (every method that writes) the disk is full, for example. It may be about an earlier write.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._name = path.name
        self._hash = hashlib.sha256()
        self._descriptor = _create(path)
        self._hashing, self._writing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)  # one keeps the order
        self._filling, self._in_use = _Buffer(), _Buffer()
        self._length = 0  # bytes
        self._error: OSError | None = None

    def append(self, index: MetadataIndex, value: Tensor | io.BytesIO, *, checksum: bool = True) -> WriteResult:
        """Append a contiguous tensor on the CPU, or an object that ``torch.save`` has serialised.

        Args:
            checksum: whether ``torch.save`` stores the CRC-32 of a tensor, which export compares. It takes 0.4 of the
                time of the hash.

        Returns:
            The entry for ``.metadata`` under ``index``.
        """
        start = self._length
        default = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(checksum)  # without one, torch stores 0
        try:
            if isinstance(value, Tensor):
                torch.save(value, cast("IO[bytes]", self))
            else:
                self.write(value.getbuffer())
        except RuntimeError:  # torch's error for any error while it writes
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            torch.serialization.set_crc32_options(default)
        length = self._length - start
        return WriteResult(index=index, size_in_bytes=length, storage_data=_StorageInfo(self._name, start, length))

    def hexdigest(self) -> str:
        """SHA-256 of the closed file."""
        assert self.closed, "hashing may not be finished"
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """Whether it can be written."""
        return True

    def tell(self) -> int:
        """Bytes appended."""
        return self._length

    def write(self, data: Any) -> int:
        """Copy all of ``data``, and start to hash and write each piece that is full."""
        rest = np.frombuffer(data, np.uint8)
        size = len(rest)
        while len(rest):
            count = self._filling.add(rest)
            rest = rest[count:]
            self._length += count
            if self._filling.is_full:
                self._filling, self._in_use = self._in_use, self._process(self._filling)
                self._filling.wait()
        return size

    def close(self) -> None:
        """Write the rest and force the file to disk."""
        if self.closed:
            return
        try:
            self._process(self._filling)
            for buffer in (self._in_use, self._filling):
                buffer.wait()
            os.fsync(self._descriptor)
        finally:
            self._hashing.shutdown()
            self._writing.shutdown()
            os.close(self._descriptor)
            super().close()

    def _process(self, buffer: _Buffer) -> _Buffer:
        start = self._length - len(buffer.content)
        buffer.users = [
            self._hashing.submit(self._hash.update, buffer.content),
            self._writing.submit(self._write_piece, buffer.content, start),
        ]
        return buffer

    def _write_piece(self, piece: memoryview, start: int) -> None:
        if len(piece) < _PIECE:  # the last one
            _use_page_cache(self._descriptor)
        try:
            while piece:
                count = _write_at(self._descriptor, piece, start)
                piece, start = piece[count:], start + count
        except OSError as error:
            self._error = error
            raise


class _Buffer:
    """Memory for one piece, with the alignment of a page."""

    def __init__(self) -> None:
        self._memory = np.frombuffer(mmap.mmap(-1, _PIECE), np.uint8)
        self._size = 0
        self.users: list[Future[None]] = []

    @property
    def content(self) -> memoryview:
        """What was added."""
        return self._memory[: self._size].data

    @property
    def is_full(self) -> bool:
        """Whether nothing more fits."""
        return self._size == len(self._memory)

    def add(self, data: np.ndarray) -> int:
        """Add as many bytes of ``data`` as fit; returns how many."""
        free = self._memory[self._size :]
        count = min(len(free), len(data))
        np.copyto(free[:count], data[:count])
        self._size += count
        return count

    def wait(self) -> None:
        """Return when it is no longer used, and empty."""
        for user in self.users:
            user.result()
        self.users, self._size = [], 0


def _create(path: Path) -> int:
    """The descriptor of a new file, without page cache if the file system allows it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | _O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    path.unlink(missing_ok=True)  # Linux creates it before it refuses
    return os.open(path, flags, 0o666)


def _write_at(descriptor: int, piece: memoryview, start: int) -> int:
    """``os.pwrite``, through the page cache if the disk's blocks do not divide ``piece`` or ``start``."""
    try:
        return os.pwrite(descriptor, piece, start)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    _use_page_cache(descriptor)
    return os.pwrite(descriptor, piece, start)


def _use_page_cache(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~_O_DIRECT)
