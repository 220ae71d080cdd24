"""Decontamination: finds training problems that are evaluation problems, or share much of their text with one.

Texts are compared as words. Case, white space and punctuation do not count, and the names in a signature
(``def NAME(ARGUMENTS)``) are replaced, since copies often change them. An evaluation problem is found in a training
problem if their words are equal, or if the two share at least ``overlap`` of the word n-grams of the shorter one. The
measure is containment, not similarity: a copy with a story around it, or without its examples, is still found.

Not covered: translations, paraphrases, and renamed variables outside a signature.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.config.problems import BenchmarkConfig, ContaminationConfig, EvaluationSetConfig, MinicodeConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems.benchmarks import load_problems, source_hashes
from megatron_ssd.problems.selection import json_line
from megatron_ssd.problems.table import Table, open_table
from megatron_ssd.schema import Problem

HITS_FILE = "contamination.jsonl"
_WORD = re.compile(r"\w+")
_SIGNATURE = re.compile(r"\bdef\s+(\w+)\s*\(([^)]*)\)", re.IGNORECASE)
_SLOTS_PER_NGRAM = 64  # so that one lookup in a hundred is a false positive
_NAME = "·"  # replaces any name from a signature; no word contains it


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationProblem:
    """A problem that must not be trained on. With ``exact_only`` all of its words are compared, and no n-grams."""

    set_name: str
    id: str
    text: str
    exact_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """An evaluation problem found in a training problem.

    ``overlap`` is the shared part of the shorter one's n-grams, 1 for equal words.
    """

    problem_id: str
    set_name: str
    evaluation_id: str
    overlap: float
    exact: bool


def words(text: str) -> tuple[str, ...]:
    """The words that are compared."""
    names: set[str] = set()  # with case: for a function called add, "Add" in the text is not a name
    for function, arguments in _SIGNATURE.findall(text) if "def" in text.lower() else ():
        names.add(function)
        names.update(name for part in arguments.split(",") for name in _WORD.findall(part)[:1] if name != "self")
    found = _WORD.findall(text)
    return tuple(_NAME if word in names else word.lower() for word in found) if names else tuple(map(str.lower, found))


class ContaminationIndex:
    """The n-grams of all evaluation problems, in which training problems are looked up.

    N-grams are represented by 64-bit hashes. A lookup table of single bytes quickly rules out nearly every n-gram of a
    training set. Memory grows with the evaluation sets: about 100 bytes per word.

    Args:
        problems: the evaluation problems; those without a word are left out.
        ngram: words per n-gram; an evaluation text with fewer words is one n-gram.
        overlap: the share of n-grams that makes a hit: of the evaluation problem's n-grams, or of the training
            problem's if it has fewer and its text has at least twice ``ngram`` words (a phrase alone is not a hit).
    """

    def __init__(self, problems: Iterable[EvaluationProblem], *, ngram: int, overlap: float) -> None:
        self._ngram, self._overlap = ngram, overlap
        self._problems: list[EvaluationProblem] = []  # a problem with a signature is listed twice
        self._exact: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        self._number_of: dict[str, int] = {}
        texts: list[tuple[str, ...]] = []
        for problem in problems:
            # Also with its own names: a copy without the signature still has them in its text and examples.
            as_written = tuple(map(str.lower, _WORD.findall(problem.text)))
            for found in filter(None, dict.fromkeys((words(problem.text), as_written))):
                self._exact[found].append(len(self._problems))
                self._problems.append(problem)
                texts.append(() if problem.exact_only else found)
                for word in texts[-1]:
                    self._number_of.setdefault(word, len(self._number_of) + 2)  # 1 is any other word
        generator = np.random.default_rng(0)  # the factors can be any odd numbers
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
        self._occupied = np.zeros(1 << bits, dtype=np.bool_)
        self._occupied[hashes >> self._shift] = True

    def hits(self, problem_id: str, text: str) -> list[Hit]:
        """Evaluation problems found in a training problem, the most certain first."""
        if not self._problems:
            return []
        found = words(text)
        counts: Counter[int] = Counter()
        own = 0  # distinct n-grams of the text, counted only if needed
        for length, hashes in self._windows(found):
            near = list(set(hashes[self._occupied[hashes >> self._shift]].tolist()))
            if not near:
                continue
            first, end = (
                np.searchsorted(self._hashes, np.array(near, np.uint64), side).tolist() for side in ("left", "right")
            )
            for i, j in zip(first, end, strict=True):
                counts.update(self._holders[i:j].tolist())
            if counts and length == self._ngram and len(found) >= 2 * length:
                own = len(np.unique(hashes))
        overlaps = {n: count / min(self._sizes[n], own or self._sizes[n]) for n, count in counts.items()}
        equal = self._exact.get(found, [])
        overlaps.update(dict.fromkeys(equal, 1.0))
        hits = [self._hit(problem_id, n, overlap, exact=n in equal) for n, overlap in overlaps.items()
                if overlap >= self._overlap]  # fmt: skip
        best: dict[tuple[str, str], Hit] = {}
        for hit in sorted(hits, key=lambda hit: (-hit.exact, -hit.overlap, hit.set_name, hit.evaluation_id)):
            best.setdefault((hit.set_name, hit.evaluation_id), hit)
        return list(best.values())

    def _hit(self, problem_id: str, number: int, overlap: float, *, exact: bool) -> Hit:
        problem = self._problems[number]
        return Hit(problem_id=problem_id, set_name=problem.set_name, evaluation_id=problem.id,
                   overlap=round(overlap, 3), exact=exact)  # fmt: skip

    def _own_hashes(self, text: tuple[str, ...]) -> NDArray[np.uint64]:
        """The distinct n-grams of an evaluation text."""
        wanted = min(self._ngram, len(text))
        return np.unique(np.concatenate([np.empty(0, np.uint64), *(h for n, h in self._windows(text) if n == wanted)]))

    def _windows(self, found: tuple[str, ...]) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """For each length of evaluation n-grams, the hashes of all runs of that many words, in order."""
        numbers = np.fromiter(map(self._number_of.get, found, repeat(1)), dtype=np.uint64, count=len(found))
        sums = np.zeros(len(found), dtype=np.uint64)  # after n rounds, the hash of the n words from each index on
        for length in range(1, min(self._ngram, len(found)) + 1):
            sums = sums[: len(found) - length + 1] + numbers[length - 1 :] * self._factors[length - 1]
            if length in self._lengths:
                yield length, sums


class Decontaminator:
    """Looks up problems in the evaluation sets of a run, its own benchmarks included, and collects the hits.

    Raises:
        UserError: a set cannot be read.
    """

    def __init__(self, section: ContaminationConfig, benchmark: BenchmarkConfig | None, world: MinicodeConfig) -> None:
        self._section = section
        problems = [*_benchmark_problems(benchmark, world), *_listed_problems(section)]
        self.sets = sorted({problem.set_name for problem in problems})
        self._index = ContaminationIndex(problems, ngram=self._section.ngram, overlap=self._section.overlap)
        self._hits: dict[str, list[Hit]] = {}  # by problem id, which is unique among the looked-up problems

    def drops(self, problem: Problem) -> bool:
        """Look up ``problem``, remember its hits, and return whether it is dropped because of them."""
        found = self._index.hits(problem.id, f"{problem.statement}\n{problem.starter_code}")
        if found:
            self._hits[problem.id] = found
        return bool(found) and self._section.on_hit == "drop"

    def report(self, folder: Path, *, kept: Iterable[str]) -> int:
        """Write the hits to ``folder``. Returns how many of the problems ``kept`` (ids in order) have one.

        Raises:
            UserError: these are more than ``contamination.max_hits`` and ``on_hit`` is ``refuse``.
        """
        path = folder / HITS_FILE
        among_kept = [id_ for id_ in kept if id_ in self._hits]
        marked = set(among_kept)
        with path.open("wb") as lines:
            for hits in self._hits.values():
                for hit in hits:
                    lines.write(json_line({**dataclasses.asdict(hit), "kept": hit.problem_id in marked}))
        if self._section.on_hit == "refuse" and len(among_kept) > self._section.max_hits:
            first = self._hits[among_kept[0]][0]
            raise UserError(
                f"{len(among_kept)} training problem(s) in evaluation sets, the first {first.problem_id}, which shares "
                f"{first.overlap:.0%} with {first.set_name}'s {first.evaluation_id}",
                rule=f"contamination.max_hits = {self._section.max_hits}, and a score on trained problems means "
                f"nothing; {path} lists all",
                fix="drop them with contamination.on_hit=drop, or keep them with contamination.on_hit=keep",
            )
        return len(among_kept)


def evaluation_set_hashes(
    section: ContaminationConfig, benchmark: BenchmarkConfig | None, world: MinicodeConfig
) -> dict[str, str]:
    """Role -> hash of every evaluation set that a ``Decontaminator`` reads."""
    found = {f"evaluation set {name}": hash_json([_table(name, one).identity, *_columns(one)])
             for name, one in section.sets.items()}  # fmt: skip
    # Flawed problems are looked up whether they count or not.
    return found | {f"benchmark {name}": identity for name, identity in source_hashes(benchmark, world)}


def _table(name: str, one: EvaluationSetConfig) -> Table:
    key = f"contamination.sets.{name}"
    fix = f"name the columns of your file in {key}.columns and {key}.id"
    return open_table(str(one.path), key=f"{key}.path", columns_fix=fix)


def _columns(one: EvaluationSetConfig) -> list[str]:
    return [*one.columns, *([one.id] if one.id is not None else [])]


def _benchmark_problems(benchmark: BenchmarkConfig | None, world: MinicodeConfig) -> Iterator[EvaluationProblem]:
    for name, one in benchmark.sets.items() if benchmark else ():
        # All minicode problems consist of the same phrases; two of them are the same only if all words are equal.
        exact_only = one.format == "minicode"
        for problem in load_problems(name, one, world):
            text = f"{problem.statement}\n{problem.starter_code}" if exact_only else problem.statement
            yield EvaluationProblem(set_name=name, id=problem.id, text=text, exact_only=exact_only)


def _listed_problems(section: ContaminationConfig) -> Iterator[EvaluationProblem]:
    for name, one in section.sets.items():
        key, number, has_words = f"contamination.sets.{name}", 0, False
        fix = f"name the columns of the problems' text in {key}.columns"
        for number, row in enumerate(_table(name, one).rows(_columns(one)), start=1):
            text = "\n".join(row.text(column, fix=fix) for column in one.columns)
            has_words |= bool(words(text))
            id_ = f"row {number}" if one.id is None else str(row.values[one.id])
            yield EvaluationProblem(set_name=name, id=id_, text=text)
        if not has_words:
            raise UserError(f"{key}.path = {one.path}", rule=f"none of its {number} rows has a word to compare",
                            fix=f"name the file and the columns that hold the problems' text in {key}")  # fmt: skip
