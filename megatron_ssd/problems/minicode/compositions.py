"""Draws the problems of test set, training set or corpus.

A problem is identified by what it computes: its fingerprint hashes its outputs on fixed probe lists. Two compositions
that compute the same function are the same problem, even if their steps differ.

Invariants:
- The fingerprint and the world's seed alone decide whether a composition belongs to the test set, the training set or
  the corpus. So the three share no problem, for any number and order of draws.
- Each step of a composition matters: leaving one out changes the fingerprint.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator
from typing import Any, Literal

from megatron_ssd.problems.minicode.operations import OPERATIONS, meaning
from megatron_ssd.problems.minicode.solutions import Composition

Split = Literal["test", "train", "corpus"]

_SHARES: dict[Split, float] = {"test": 0.1, "train": 0.3, "corpus": 0.6}
_MIN_DISTINCT_OUTPUTS = 4  # on the probes; with fewer, a constant would nearly solve the problem
_PATIENCE = 500  # consecutive draws of known problems before a search ends
_SHARE_REDUCED = 0.25  # compositions that end in a number
SMALLEST, LARGEST = -9, 15  # elements of the lists that programs run on
MAX_LENGTH = 8

_LIST_STEPS = tuple(name for name, operation in OPERATIONS.items() if operation.kind != "reduce")
_REDUCE_STEPS = tuple(name for name, operation in OPERATIONS.items() if operation.kind == "reduce")


def random_list(rng: random.Random, min_length: int = 4) -> list[int]:
    """A list of the kind that programs run on."""
    return [rng.randint(SMALLEST, LARGEST) for _ in range(rng.randint(min_length, MAX_LENGTH))]


def run(composition: Composition, xs: list[int]) -> Any:
    """What ``composition`` computes for ``xs``: a list, or a number if the last step reduces."""
    value: Any = xs
    for step in composition:
        value = meaning(step)(value)
    return value


@functools.lru_cache(maxsize=1 << 16)
def fingerprint(composition: Composition) -> str:
    """Hash of the outputs on the probes: the identity of a problem. 24 hex digits."""
    return hashlib.sha256(repr(_outputs(composition)).encode()).hexdigest()[:24]


def split_of(composition: Composition, seed: int) -> Split:
    """The split of this problem in the world of ``seed``."""
    digest = hashlib.sha256(f"{seed}:{fingerprint(composition)}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in _SHARES.items():
        point -= share
        if point < 0:
            return split
    return "corpus"


def is_sound(composition: Composition) -> bool:
    """Whether every step matters and the output varies."""
    if len(set(map(repr, _outputs(composition)))) < _MIN_DISTINCT_OUTPUTS:
        return False
    full = fingerprint(composition)
    shorter = (composition[:skipped] + composition[skipped + 1 :] for skipped in range(len(composition)))
    return all(fingerprint(rest) != full for rest in shorter)


def draw(rng: random.Random, length: int, split: Split, seed: int) -> Composition:
    """A sound composition of ``length`` steps that belongs to ``split``."""
    while True:
        composition = _draw_any(rng, length)
        if split_of(composition, seed) == split and is_sound(composition):
            return composition


def draw_distinct(rng: random.Random, length: int, split: Split, seed: int) -> Iterator[Composition]:
    """Compositions as from ``draw``, all different problems, until new ones become rare."""
    seen: set[str] = set()
    repeats = 0
    while repeats < _PATIENCE:
        composition = draw(rng, length, split, seed)
        if fingerprint(composition) in seen:
            repeats += 1
            continue
        seen.add(fingerprint(composition))
        repeats = 0
        yield composition


@functools.lru_cache(maxsize=1 << 16)
def _outputs(composition: Composition) -> tuple[Any, ...]:
    """Outputs on the probes, computed from those of the first steps, which many compositions share."""
    if not composition:
        return _probes()
    apply = meaning(composition[-1])
    return tuple(apply(value) for value in _outputs(composition[:-1]))


@functools.cache
def _probes() -> tuple[list[int], ...]:
    rng = random.Random("minicode probes")
    return ([], *(random_list(rng) for _ in range(9)))


def _draw_any(rng: random.Random, length: int) -> Composition:
    names = [rng.choice(_LIST_STEPS) for _ in range(length)]
    if rng.random() < _SHARE_REDUCED:
        names[-1] = rng.choice(_REDUCE_STEPS)
    return tuple(OPERATIONS[name] for name in names)
