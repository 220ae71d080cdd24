"""Training problems that are evaluation problems, or share much of their text with one.

Texts are compared as words: case, white space and punctuation aside, and with the names that a signature gives
(``def NAME(ARGUMENTS)``) replaced, since those are what a copier changes first. An evaluation problem is found in a
training problem where the words are equal, or where the two share at least ``overlap`` of the word n-grams of the
shorter one. Containment, and not similarity: a copy stays one with a story around it, and without its examples.

What is not covered: translations, paraphrases, and renamed variables outside of a signature.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_SIGNATURE = re.compile(r"\bdef\s+(\w+)\s*\(([^)]*)\)", re.IGNORECASE)
_SLOTS_PER_NGRAM = 64  # so that one in a hundred is looked for in vain
_NAME = "·"  # stands for any name from a signature; no word has it


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationProblem:
    """A problem that must not be trained on. ``exact_only`` compares all of its words, and no n-grams."""

    set_name: str
    id: str
    text: str
    exact_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """An evaluation problem found in a training problem; ``overlap`` is of the shorter's n-grams, 1 for equal words."""

    problem_id: str
    set_name: str
    evaluation_id: str
    overlap: float
    exact: bool


def words(text: str) -> tuple[str, ...]:
    """The words that are compared."""
    names: set[str] = set()  # as they are written: a function called add does not make "Add" of the prose a name
    for function, arguments in _SIGNATURE.findall(text) if "def" in text.lower() else ():
        names.add(function)
        names.update(name for part in arguments.split(",") for name in _WORD.findall(part)[:1] if name != "self")
    found = _WORD.findall(text)
    return tuple(_NAME if word in names else word.lower() for word in found) if names else tuple(map(str.lower, found))


class ContaminationIndex:
    """The n-grams of all evaluation problems, to hold training problems against.

    N-grams are known by hashes of 64 bits, and a table of single bytes says of nearly every n-gram of a training set
    that it is in no evaluation set. Memory goes with the evaluation sets: some 100 bytes for each of their words.

    Args:
        problems: the evaluation problems; those without a word are left out.
        ngram: words in an n-gram; an evaluation text of fewer words is one n-gram.
        overlap: the share of n-grams that makes a hit, of the evaluation problem's, or of the training problem's where
            those are fewer and the text has at least twice ``ngram`` words (a phrase alone accuses nobody).
    """

    def __init__(self, problems: Iterable[EvaluationProblem], *, ngram: int, overlap: float) -> None:
        self._ngram, self._overlap = ngram, overlap
        self._problems: list[EvaluationProblem] = []
        self._exact: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        self._number_of: dict[str, int] = {}
        texts: list[tuple[str, ...]] = []
        for problem in problems:
            found = words(problem.text)
            if not found:
                continue
            self._exact[found].append(len(self._problems))
            self._problems.append(problem)
            texts.append(() if problem.exact_only else found)
            for word in texts[-1]:
                self._number_of.setdefault(word, len(self._number_of) + 2)  # 1 is every other word
        generator = np.random.default_rng(0)  # any odd numbers serve
        self._factors = generator.integers(1 << 63, size=ngram, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._lengths = {min(ngram, len(text)) for text in texts if text}
        own = [self._own_hashes(text) for text in texts]
        self._sizes = [len(hashes) for hashes in own]  # distinct n-grams of each
        hashes = np.concatenate([np.empty(0, np.uint64), *own])
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._holders = np.repeat(np.arange(len(own), dtype=np.int32), self._sizes)[order]
        bits = max(10, (_SLOTS_PER_NGRAM * len(hashes)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._taken = np.zeros(1 << bits, dtype=np.bool_)
        self._taken[hashes >> self._shift] = True

    def __len__(self) -> int:
        return len(self._problems)

    def hits(self, problem_id: str, text: str) -> list[Hit]:
        """Evaluation problems found in a training problem, the surest first."""
        if not self._problems:
            return []
        found = words(text)
        counts: Counter[int] = Counter()
        own = 0  # distinct n-grams, once they are needed
        for length, hashes in self._windows(found):
            near = list(set(hashes[self._taken[hashes >> self._shift]].tolist()))
            if not near:
                continue
            first, end = (
                np.searchsorted(self._hashes, np.array(near, np.uint64), side).tolist() for side in ("left", "right")
            )
            for i, j in zip(first, end, strict=True):
                counts.update(self._holders[i:j].tolist())
            if counts and length == self._ngram and len(found) >= 2 * length:
                own = len(np.unique(hashes))
        equal = self._exact.get(found, [])
        hits = [self._hit(problem_id, number, 1.0, exact=True) for number in equal]
        for number in counts.keys() - set(equal):
            shorter = min(self._sizes[number], own or self._sizes[number])
            hits.append(self._hit(problem_id, number, counts[number] / shorter, exact=False))
        chosen = [hit for hit in hits if hit.overlap >= self._overlap]
        return sorted(chosen, key=lambda hit: (-hit.exact, -hit.overlap, hit.set_name, hit.evaluation_id))

    def _hit(self, problem_id: str, number: int, overlap: float, *, exact: bool) -> Hit:
        problem = self._problems[number]
        return Hit(problem_id=problem_id, set_name=problem.set_name, evaluation_id=problem.id,
                   overlap=round(overlap, 3), exact=exact)  # fmt: skip

    def _own_hashes(self, text: tuple[str, ...]) -> NDArray[np.uint64]:
        """The distinct n-grams of an evaluation text."""
        wanted = min(self._ngram, len(text))
        return np.unique(np.concatenate([np.empty(0, np.uint64), *(h for n, h in self._windows(text) if n == wanted)]))

    def _windows(self, found: tuple[str, ...]) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """For each length that evaluation n-grams have, the hash of every run of so many words, in order."""
        numbers = np.fromiter(map(self._number_of.get, found, repeat(1)), dtype=np.uint64, count=len(found))
        sums = np.zeros(len(found), dtype=np.uint64)  # after n rounds, of the n words from each place on
        for length in range(1, min(self._ngram, len(found)) + 1):
            sums = sums[: len(found) - length + 1] + numbers[length - 1 :] * self._factors[length - 1]
            if length in self._lengths:
                yield length, sums
