"""Training problems that are evaluation problems, or hold much of one.

Texts are compared as words: lower case, white space and punctuation aside, and with the names that a signature gives
(``def NAME(ARGUMENTS)``) replaced, since those are what a copier changes first. An evaluation problem is found in a
training problem where the words are equal, or where at least ``overlap`` of its word n-grams stand in the training
problem; an evaluation text of fewer than n words is one n-gram. Containment, and not similarity: a copy stays one with
a story around it.

What is not covered: translations, paraphrases, and renamed variables outside of a signature.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

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
    """An evaluation problem found in a training problem; ``overlap`` is the share of its n-grams, 1 for equal words."""

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
    return tuple(_NAME if word in names else word.lower() for word in _WORD.findall(text))


class ContaminationIndex:
    """The n-grams of all evaluation problems, to hold training problems against.

    Memory goes with the evaluation sets (some hundred thousand n-grams), not with the training set.

    Args:
        problems: the evaluation problems; those without a word are left out.
        ngram: words in an n-gram.
        overlap: the share of an evaluation problem's distinct n-grams that makes a hit.
    """

    def __init__(self, problems: Iterable[EvaluationProblem], *, ngram: int, overlap: float) -> None:
        self._ngram, self._overlap = ngram, overlap
        self._problems: list[EvaluationProblem] = []
        self._sizes: list[int] = []  # distinct n-grams of each
        self._lengths: set[int] = {ngram}  # of n-grams in the index; short texts have theirs
        self._holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        self._exact: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for problem in problems:
            found = words(problem.text)
            if not found:
                continue
            number = len(self._problems)
            self._problems.append(problem)
            self._exact[found].append(number)
            length = min(ngram, len(found))
            grams = set() if problem.exact_only else _ngrams(found, length)
            self._sizes.append(len(grams))
            self._lengths.add(length)
            for gram in grams:
                self._holders[gram].append(number)

    def __len__(self) -> int:
        return len(self._problems)

    def hits(self, problem_id: str, text: str) -> list[Hit]:
        """Evaluation problems found in a training problem, the surest first."""
        found = words(text)
        counts: Counter[int] = Counter()
        for length in self._lengths:
            for gram in _ngrams(found, length):
                counts.update(self._holders.get(gram, ()))
        equal = self._exact.get(found, [])
        hits = [self._hit(problem_id, number, 1.0, exact=True) for number in equal]
        hits += [
            self._hit(problem_id, number, count / self._sizes[number], exact=False)
            for number, count in counts.items()
            if number not in equal
        ]
        chosen = [hit for hit in hits if hit.overlap >= self._overlap]
        return sorted(chosen, key=lambda hit: (-hit.exact, -hit.overlap, hit.set_name, hit.evaluation_id))

    def _hit(self, problem_id: str, number: int, overlap: float, *, exact: bool) -> Hit:
        problem = self._problems[number]
        return Hit(problem_id=problem_id, set_name=problem.set_name, evaluation_id=problem.id,
                   overlap=round(overlap, 3), exact=exact)  # fmt: skip


def _ngrams(words_: tuple[str, ...], length: int) -> set[tuple[str, ...]]:
    return {words_[start : start + length] for start in range(len(words_) - length + 1)}
