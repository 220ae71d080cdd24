"""Messages over a descriptor: frames of a 4-byte big-endian length and JSON.

Nothing is read ahead, so that a child can read the next message of a descriptor that it shares.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any


def send(descriptor: int, message: Any) -> None:
    """Write one message. Raises ``OSError`` where nobody reads."""
    data = json.dumps(message).encode()
    write_all(descriptor, struct.pack(">I", len(data)) + data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int, *, limit: int | None = None) -> Any:
    """The next message; None where the other side has closed, be it in the middle of one.

    Raises:
        ValueError: the message is no JSON, or longer than ``limit`` bytes.
        RecursionError: it is nested too deeply.
    """
    header = _read(descriptor, 4)
    if header is None:
        return None
    (length,) = struct.unpack(">I", header)
    if limit is not None and length > limit:
        raise ValueError(f"a message of more than {limit} bytes")
    data = _read(descriptor, length)
    return None if data is None else json.loads(data)


def _read(descriptor: int, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        chunk = os.read(descriptor, min(count - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)
