"""Tries to start each engine of a pickled list, and prints why those that cannot start do not."""

from __future__ import annotations

import pickle
import sys

from megatron_ssd.errors import UserError

if __name__ == "__main__":
    for spec in pickle.load(sys.stdin.buffer):
        try:
            spec.start()
        except UserError as error:
            print("refused:", error)
