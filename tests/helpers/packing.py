"""A defect in packing, with which attention and position ids span samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from megatron_ssd.runtime.packed_sequences import PackedSequences, make_packed_sequences
from megatron_ssd.training import data


@contextmanager
def one_segment() -> Iterator[None]:
    """While active, all tokens of a micro batch are one segment."""

    def leaky(lengths: tuple[int, ...], **settings: Any) -> PackedSequences:
        return make_packed_sequences((sum(lengths),), **settings)

    with mock.patch.object(data, "make_packed_sequences", leaky):
        yield
