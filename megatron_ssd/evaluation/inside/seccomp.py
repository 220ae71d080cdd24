"""The system-call filter of programs.

It refuses new processes (threads are allowed), other program images, and every system call that touches another
process. RLIMIT_NPROC would not do: it does not bind root, and it counts what the same user runs elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Any

PR_SET_DUMPABLE, _PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CLONE_THREAD = 0x00010000
# System call numbers that are refused: making processes, changing the program image, reaching into other processes,
# their memory, priority and processors included.
_REFUSED = {
    "x86_64": (57, 58, 59, 322, 101, 310, 311, 62, 129, 200, 234, 297, 424, 434, 438, 272, 308, 425,
               141, 142, 144, 203, 251, 256, 279, 314),
    "aarch64": (221, 281, 117, 270, 271, 129, 138, 130, 131, 240, 424, 434, 438, 97, 268, 425,
                30, 118, 119, 122, 140, 238, 239, 274),
}  # fmt: skip
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_PRLIMIT = {"x86_64": 302, "aarch64": 261}  # refused for any process but the caller, whom it names 0
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


class Seccomp:
    """The system-call filter of a program, built once and entered by every child."""

    def __init__(self) -> None:
        machine = platform.machine()
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
            (give, 0, 0, unknown),  # glibc then falls back on clone, whose flags a filter can read
        ]
        for number, passes in (
            (_CLONE[machine], (jump_set, 1, 0, _CLONE_THREAD)),
            (_PRLIMIT[machine], (jump_equal, 1, 0, 0)),
        ):
            code += [(jump_equal, 0, 4, number), (load, 0, 0, 16), passes, (give, 0, 0, refuse), (give, 0, 0, allow)]
        for number in _REFUSED[machine]:
            code += [(jump_equal, 0, 1, number), (give, 0, 0, refuse)]
        code.append((give, 0, 0, allow))
        return b"".join(struct.pack("HBBI", *instruction) for instruction in code)

    def prctl(self, option: int, *arguments: Any) -> None:
        """``prctl(2)``; raises ``OSError``."""
        padded = [a if isinstance(a, ctypes.Array) else ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
        if self._libc.prctl(option, *padded) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl {option}: {os.strerror(number)}")

    def enter(self) -> None:
        """From here on this process is filtered, for good."""
        self.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._header)
