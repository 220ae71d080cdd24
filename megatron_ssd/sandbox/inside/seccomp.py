"""The filter of system calls for programs.

It refuses new processes (threads are allowed), new program images, every system call that affects another process, and
the kernel's stores that outlive a process (System V memory, semaphores and queues, POSIX queues, keys). A process
cannot become dumpable again, so a crash does not reach the machine's core handler. RLIMIT_NPROC is not enough
against new processes: it does not bind root, and before Linux 5.14 it also counts what the same user runs elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any

PR_SET_DUMPABLE, _PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_THREAD = 0x00010000
# System call numbers that are refused: making processes, changing the program image, reaching into other processes,
# their memory, priority and processors included; then shmget, semget, msgget, mq_open, add_key, request_key, keyctl,
# perf_event_open, bpf, userfaultfd.
_REFUSED = {
    "x86_64": (57, 58, 59, 322, 101, 310, 311, 62, 129, 200, 234, 297, 424, 434, 438, 272, 308, 425,
               141, 142, 144, 203, 251, 256, 279, 314,
               29, 64, 68, 240, 248, 249, 250, 298, 321, 323),
    "aarch64": (221, 281, 117, 270, 271, 129, 138, 130, 131, 240, 424, 434, 438, 97, 268, 425,
                30, 118, 119, 122, 140, 238, 239, 274,
                194, 190, 186, 180, 217, 218, 219, 241, 280, 282),
}  # fmt: skip
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_PRLIMIT = {"x86_64": 302, "aarch64": 261}  # allowed only for the caller itself, whose process id is 0 here
_PRCTL = {"x86_64": 157, "aarch64": 167}  # refused for PR_SET_DUMPABLE
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


class Seccomp:
    """The system-call filter, built once and entered by every child."""

    def __init__(self) -> None:
        machine = os.uname().machine
        if machine not in _REFUSED:
            raise RuntimeError(f"no system-call filter for {machine}; the sandbox knows {', '.join(_REFUSED)}")
        code = self._program(machine)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._code = ctypes.create_string_buffer(code, len(code))
        # struct sock_fprog: the number of instructions, then their address.
        self._header = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(self._code)))

    @staticmethod
    def _program(machine: str) -> bytes:
        """Classic BPF over struct seccomp_data: number at offset 0, architecture at 4, first argument at 16."""
        load, jump_equal, jump_set, jump_at_least, give = 0x20, 0x15, 0x45, 0x35, 0x06
        allow, kill = 0x7FFF0000, 0x80000000
        refuse, unknown = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
        code = [
            (load, 0, 0, 4),
            (jump_equal, 1, 0, _AUDIT_ARCH[machine]),
            (give, 0, 0, kill),  # a system call of another architecture has other numbers
            (load, 0, 0, 0),
            (jump_at_least, 0, 1, 0x40000000),
            (give, 0, 0, kill),  # x32's numbers
            (jump_equal, 0, 1, _CLONE3),
            (give, 0, 0, unknown),  # glibc then falls back to clone, whose flags a filter can read
        ]
        for number, passes in (
            (_CLONE[machine], (jump_set, 1, 0, _CLONE_THREAD)),
            (_PRLIMIT[machine], (jump_equal, 1, 0, 0)),
            (_PRCTL[machine], (jump_equal, 0, 1, PR_SET_DUMPABLE)),
        ):
            code += [(jump_equal, 0, 4, number), (load, 0, 0, 16), passes, (give, 0, 0, refuse), (give, 0, 0, allow)]
        # The rest is a binary search: the kernel runs the filter for every number when a process enters it.
        tree = _search(sorted(_REFUSED[machine]))
        for left, (number, smaller) in zip(range(len(tree), 0, -1), tree, strict=True):
            code.append((jump_at_least, smaller, 0, number) if smaller else (jump_equal, left, left - 1, number))
        code += [(give, 0, 0, allow), (give, 0, 0, refuse)]
        return b"".join(struct.pack("HBBI", *instruction) for instruction in code)

    def prctl(self, option: int, *arguments: Any) -> None:
        """``prctl(2)``; raises ``OSError``."""
        padded = [a if isinstance(a, ctypes.Array) else ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
        if self._libc.prctl(option, *padded) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl {option}: {os.strerror(number)}")

    def drop_capabilities(self) -> None:
        """Drop effective, permitted and inheritable capabilities; raises ``OSError``."""
        header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
        if self._libc.capset(header, bytes(24)) != 0:
            raise OSError(ctypes.get_errno(), "capset")

    def enter(self) -> None:
        """Filter the system calls of this process from now on. This cannot be undone."""
        self.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._header)


def _search(numbers: list[int]) -> list[tuple[int, int]]:
    """The steps of a binary search: a number, and how many steps follow for smaller ones, 0 for the last step."""
    middle = len(numbers) // 2
    if middle == 0:
        return [(numbers[0], 0)]
    smaller = _search(numbers[:middle])
    return [(numbers[middle], len(smaller)), *smaller, *_search(numbers[middle:])]
