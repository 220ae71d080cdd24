"""Sends messages over a descriptor, each a 4-byte big-endian length followed by JSON."""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any


def send(descriptor: int, message: Any) -> None:
    """Write one message. Raises ``OSError`` if the reading end is closed."""
    data = json.dumps(message).encode()
    write_all(descriptor, struct.pack(">I", len(data)) + data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, in as many calls as it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int, *, deadline: float | None = None) -> Any:
    """The next message; None if the other side has closed, even in the middle of a message.

    Args:
        descriptor: a pipe or a socket.
        deadline: of ``time.monotonic``.

    Raises:
        TimeoutError: the deadline passed.
        ValueError: the message is not JSON.
        RecursionError: it is nested too deeply.
    """
    header = _read(descriptor, 4, deadline)
    if header is None:
        return None
    (length,) = struct.unpack(">I", header)
    data = _read(descriptor, length, deadline)
    return None if data is None else json.loads(data)


def _read(descriptor: int, count: int, deadline: float | None) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        if deadline is not None:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            if not poller.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                raise TimeoutError("no answer in time")
        chunk = os.read(descriptor, min(count - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)
