"""Finds near duplicates among kept texts: MinHash signatures (datasketch) in a table that grows with the data.

A text is the set of its word 5-grams. Signatures are cut into bands. Two similar texts nearly always agree in at least
one complete band, and only such pairs are compared (locality-sensitive hashing; datasketch chooses the bands for the
threshold). All bands share one open-addressing table, so a kept text takes 512 bytes of signature and about 150 bytes
of table. datasketch's own index, a dictionary of sets per band, takes 5 KB.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_NUM_PERMUTATIONS = 128
_SHINGLE_WORDS = 5
_CHUNK = 4096  # signatures in one array
_SLOTS_PER_ENTRY = 3  # at least


class NearDuplicates:
    """Finds the first kept text whose estimated Jaccard similarity to another reaches ``threshold``."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH  # imports scipy, which takes a second

        bands = MinHashLSH(threshold=threshold, num_perm=_NUM_PERMUTATIONS)
        self._threshold, self._bands, self._rows_per_band = threshold, int(bands.b), int(bands.r)
        generator = np.random.default_rng(0)  # the factors can be any odd numbers
        shape = (self._bands, self._rows_per_band)
        self._factors = generator.integers(1 << 63, size=shape, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._chunks: list[NDArray[np.uint32]] = []  # signatures, [_CHUNK, _NUM_PERMUTATIONS] each
        self._names = array("Q")  # of the kept texts
        self._bits = 16
        self._table = array("I", bytes(4 << self._bits))  # number of a kept text plus 1; 0 is free

    def find_or_add(self, text: str, name: int) -> int | None:
        """The name of the first kept text similar to ``text``. If there is none, keeps ``text`` and returns None."""
        signature = _signature(text)
        slots = self._slots(signature)
        for number in sorted({number for slot in slots for number in self._chain(slot)}):
            if np.count_nonzero(self._signature_of(number) == signature) >= self._threshold * _NUM_PERMUTATIONS:
                return self._names[number]
        self._add(signature, name, slots)
        return None

    def _add(self, signature: NDArray[np.uint32], name: int, slots: list[int]) -> None:
        number = len(self._names)
        if number % _CHUNK == 0:
            self._chunks.append(np.empty((_CHUNK, _NUM_PERMUTATIONS), np.uint32))
        self._signature_of(number)[:] = signature
        self._names.append(name)
        if (number + 1) * self._bands * _SLOTS_PER_ENTRY > len(self._table):
            self._grow()
        else:
            self._insert(number, slots)

    def _grow(self) -> None:
        self._bits += 1
        self._table = array("I", bytes(4 << self._bits))
        for number in range(len(self._names)):
            self._insert(number, self._slots(self._signature_of(number)))

    def _insert(self, number: int, slots: list[int]) -> None:
        mask = len(self._table) - 1
        for slot in slots:
            while self._table[slot]:
                slot = (slot + 1) & mask
            self._table[slot] = number + 1

    def _chain(self, slot: int) -> Iterator[int]:
        """Numbers of the kept texts from ``slot`` to the next free slot: those of the band, and a few others."""
        mask = len(self._table) - 1
        while taken := self._table[slot]:
            yield taken - 1
            slot = (slot + 1) & mask

    def _slots(self, signature: NDArray[np.uint32]) -> list[int]:
        """The first slot of the search for each band."""
        used = signature[: self._bands * self._rows_per_band].reshape(self._bands, self._rows_per_band)
        slots: list[int] = ((used * self._factors).sum(axis=1) >> np.uint64(64 - self._bits)).tolist()
        return slots

    def _signature_of(self, number: int) -> NDArray[np.uint32]:
        signature: NDArray[np.uint32] = self._chunks[number // _CHUNK][number % _CHUNK]
        return signature


def _signature(text: str) -> NDArray[np.uint32]:
    """[_NUM_PERMUTATIONS]: the share of equal elements of two signatures estimates the similarity of their texts."""
    from datasketch import MinHash  # imports scipy, which takes a second

    words = re.findall(r"\w+", text.lower())
    shingles = {" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(max(1, len(words) - _SHINGLE_WORDS + 1))}
    signature = MinHash(num_perm=_NUM_PERMUTATIONS, hashfunc=zlib.crc32)  # a tenth of the time of SHA-1
    signature.update_batch([shingle.encode() for shingle in shingles])
    values: NDArray[np.uint32] = signature.hashvalues.astype(np.uint32)
    return values
