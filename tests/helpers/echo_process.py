"""A child process that sends back what it receives, strings with a prefix."""

from __future__ import annotations

import contextlib
import os

from megatron_ssd.process import connection_to_parent

if __name__ == "__main__":
    connection = connection_to_parent()
    prefix = os.environ.get("ECHO_PREFIX", "")
    with contextlib.suppress(EOFError):
        while True:
            message = connection.recv()
            connection.send(prefix + message if isinstance(message, str) else message)
