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
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_SIGNATURE = re.compile(r"\bdef\s+(\w+)\s*\(([^)]*)\)", re.IGNORECASE)
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
    for function, arguments in _SIGNATURE.findall(text):
        names.add(function)
        names.update(name for part in arguments.split(",") for name in _WORD.findall(part)[:1] if name != "self")
    found = _WORD.findall(text)
    return tuple(_NAME if word in names else word.lower() for word in found) if names else tuple(map(str.lower, found))


class ContaminationIndex:
    """The n-grams of all evaluation problems, to hold training problems against.

    Memory goes with the evaluation sets (some hundred thousand n-grams), not with the training set.

    Args:
        problems: the evaluation problems; those without a word are left out.
        ngram: words in an n-gram; an evaluation text of fewer words is one n-gram.
        overlap: the share of n-grams that makes a hit, of the evaluation problem's, or of the training problem's where
            those are fewer and the text has at least twice ``ngram`` words (a phrase alone accuses nobody).
    """

    def __init__(self, problems: Iterable[EvaluationProblem], *, ngram: int, overlap: float) -> None:
        self._ngram, self._overlap = ngram, overlap
        self._problems: list[EvaluationProblem] = []
        self._sizes: list[int] = []  # distinct n-grams of each
        self._holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        self._exact: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for problem in problems:
            found = words(problem.text)
            if not found:
                continue
            number = len(self._problems)
            self._problems.append(problem)
            self._exact[found].append(number)
            grams = set() if problem.exact_only else _ngrams(found, min(ngram, len(found)))
            self._sizes.append(len(grams))
            for gram in grams:
                self._holders[gram].append(number)
        self._filter = _NgramFilter(self._holders)

    def __len__(self) -> int:
        return len(self._problems)

    def hits(self, problem_id: str, text: str) -> list[Hit]:
        """Evaluation problems found in a training problem, the surest first."""
        found = words(text)
        counts: Counter[int] = Counter()
        for gram in self._filter.candidates(found):
            counts.update(self._holders.get(gram, ()))
        equal = self._exact.get(found, [])
        hits = [self._hit(problem_id, number, 1.0, exact=True) for number in equal]
        if counts:
            own = len(_ngrams(found, self._ngram)) if len(found) >= 2 * self._ngram else None
            hits += [
                self._hit(problem_id, number, count / min(self._sizes[number], own or self._sizes[number]), exact=False)
                for number, count in counts.items()
                if number not in equal
            ]
        chosen = [hit for hit in hits if hit.overlap >= self._overlap]
        return sorted(chosen, key=lambda hit: (-hit.exact, -hit.overlap, hit.set_name, hit.evaluation_id))

    def _hit(self, problem_id: str, number: int, overlap: float, *, exact: bool) -> Hit:
        problem = self._problems[number]
        return Hit(problem_id=problem_id, set_name=problem.set_name, evaluation_id=problem.id,
                   overlap=round(overlap, 3), exact=exact)  # fmt: skip


class _NgramFilter:
    """Which n-grams of a text may be among given ones: a table of hashes that says yes now and then to another.

    Nearly every n-gram of a training set is in no evaluation set, and looking up each as a tuple of words would take
    most of the stage's time.
    """

    _SLOTS_PER_NGRAM = 64

    def __init__(self, grams: Collection[tuple[str, ...]]) -> None:
        self._lengths = sorted({len(gram) for gram in grams})
        self._number_of: dict[str, int] = {}
        for gram in grams:
            for word in gram:
                self._number_of.setdefault(word, len(self._number_of) + 1)  # 0 is every other word
        bits = max(10, (self._SLOTS_PER_NGRAM * len(grams)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._taken = np.zeros(1 << bits, dtype=np.bool_)
        generator = np.random.default_rng(0)  # any odd numbers serve
        longest = max(self._lengths, default=0)
        self._factors = generator.integers(1 << 63, size=longest, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        for gram in grams:
            for length, slots in self._slots(gram):
                if length == len(gram):
                    self._taken[slots] = True

    def candidates(self, found: tuple[str, ...]) -> set[tuple[str, ...]]:
        """The distinct n-grams of ``found`` that may be among the given ones: all that are, and a few others."""
        return {
            found[start : start + length]
            for length, slots in self._slots(found)
            for start in np.flatnonzero(self._taken[slots]).tolist()
        }

    def _slots(self, found: tuple[str, ...]) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """For each length of the given n-grams, the slot of every n-gram of ``found``, [len(found) - length + 1]."""
        numbers = np.fromiter(map(self._number_of.get, found, repeat(0)), dtype=np.uint64, count=len(found))
        sums = np.zeros(len(found), dtype=np.uint64)  # after n rounds, of the n words from each place on
        for length in range(1, min(len(self._factors), len(found)) + 1):
            ends = len(found) - length + 1
            sums = sums[:ends] + numbers[length - 1 :] * self._factors[length - 1]
            if length in self._lengths:
                yield length, sums >> self._shift


def _ngrams(words_: tuple[str, ...], length: int) -> set[tuple[str, ...]]:
    return {words_[start : start + length] for start in range(len(words_) - length + 1)}
