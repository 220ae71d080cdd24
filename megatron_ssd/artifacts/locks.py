"""Locks files between processes, also of several machines."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Any

from megatron_ssd.errors import UserError


def try_lock(file: IO[Any], *, shared: bool = False) -> bool:
    """Lock an open file unless another process holds its lock. Closing the file or ending the process releases it.

    Args:
        file: the file; for a lock that is not shared, open for writing, because NFS needs that.
        shared: whether other processes may hold shared locks at the same time.

    Raises:
        UserError: the file system has no locks.
    """
    return _flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def wait_for_shared_lock(file: IO[Any]) -> None:
    """Lock an open file with other readers, after any process that has it for itself. See ``try_lock``."""
    _flock(file, fcntl.LOCK_SH)


def _flock(file: IO[Any], operation: int) -> bool:
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"file {Path(file.name).absolute()}",
            rule=f"its file system does not lock it ({error.strerror})",
            fix="mount it with locks (Lustre: -o flock; NFS: start lockd, or -o local_lock=flock on a single node), or "
            "use a folder on another file system",
        ) from None
    return True
