"""The gate between training problems and evaluation sets: what is looked for, and what happens to a hit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.config.problems import ContaminationConfig, EvaluationSetConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems.contamination import ContaminationIndex, EvaluationProblem, Hit, words
from megatron_ssd.problems.livecodebench import benchmark_table
from megatron_ssd.problems.selection import json_line
from megatron_ssd.problems.source import load_benchmark
from megatron_ssd.problems.table import Table, open_table
from megatron_ssd.schema import Problem

HITS_FILE = "contamination.jsonl"


class ContaminationGate:
    """Holds problems against the evaluation sets of a run, its own benchmark among them, and keeps the hits.

    Raises:
        UserError: a set cannot be read.
    """

    def __init__(self, config: RunConfig) -> None:
        self._section: ContaminationConfig = config.contamination
        problems = list(_evaluation_problems(config))
        self.sets = sorted({problem.set_name for problem in problems})
        self._index = ContaminationIndex(problems, ngram=self._section.ngram, overlap=self._section.overlap)
        self._hits: dict[str, list[Hit]] = {}  # by problem id, which is unique among what is asked for

    def drops(self, problem: Problem) -> bool:
        """Look for ``problem`` in the sets, remember what was found, and say whether it is dropped for that."""
        found = self._index.hits(problem.id, f"{problem.statement}\n{problem.starter_code}")
        if found:
            self._hits[problem.id] = found
        return bool(found) and self._section.on_hit == "drop"

    def report(self, folder: Path, *, kept: Iterable[str]) -> int:
        """Write the hits to ``folder``; returns how many problems of ``kept``, ids in order, have one.

        Raises:
            UserError: they are more than ``contamination.max_hits`` and ``on_hit`` is ``refuse``.
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
                rule=f"contamination.max_hits = {self._section.max_hits}, and a score on what was trained on says "
                f"nothing; all are in {path}",
                fix="drop them with contamination.on_hit=drop, or go on all the same with contamination.on_hit=keep",
            )
        return len(among_kept)


def gate_inputs(config: RunConfig) -> dict[str, str]:
    """Role -> hash of every evaluation set that the gate reads."""
    sets = config.contamination.sets
    found = {f"evaluation set {name}": hash_json([_table(name, one).identity, *_columns(one)])
             for name, one in sets.items()}  # fmt: skip
    if config.benchmark is not None:
        found["benchmark"] = _benchmark_hash(config)
    return found


def _benchmark_hash(config: RunConfig) -> str:
    assert config.benchmark is not None
    # The gate reads flawed problems whether they count or not.
    window = {
        key: value for key, value in dataclasses.asdict(config.benchmark).items() if key not in ("path", "errata")
    }
    if config.benchmark.name == "minicode":
        return hash_json([window, dataclasses.asdict(config.minicode)])
    return hash_json([window, benchmark_table(config.benchmark).identity])


def _table(name: str, one: EvaluationSetConfig) -> Table:
    key = f"contamination.sets.{name}"
    fix = f"name the columns of your file in {key}.columns and {key}.id"
    return open_table(str(one.path), key=f"{key}.path", columns_fix=fix)


def _columns(one: EvaluationSetConfig) -> list[str]:
    return [*one.columns, *([one.id] if one.id is not None else [])]


def _set_problems(name: str, one: EvaluationSetConfig) -> Iterator[EvaluationProblem]:
    for number, row in enumerate(_table(name, one).rows(_columns(one)), start=1):
        texts = [row.values[column] for column in one.columns if row.values[column] is not None]
        for text in texts:
            if not isinstance(text, str):
                raise UserError(
                    f"{row.where}: {str(text)[:60]!r}",
                    rule=f"must be text and is a {type(text).__name__}",
                    fix=f"name the columns of the problems' text in contamination.sets.{name}.columns",
                )
        id_ = f"row {number}" if one.id is None else str(row.values[one.id])
        yield EvaluationProblem(set_name=name, id=id_, text="\n".join(texts))


def _evaluation_problems(config: RunConfig) -> Iterator[EvaluationProblem]:
    if config.benchmark is not None:
        # Problems of the small world are built from the same phrases; theirs are the same problem when all words are.
        exact_only = config.benchmark.name == "minicode"
        for problem in load_benchmark(config):
            text = f"{problem.statement}\n{problem.starter_code}" if exact_only else problem.statement
            yield EvaluationProblem(set_name=config.benchmark.name, id=problem.id, text=text, exact_only=exact_only)
    for name, one in config.contamination.sets.items():
        found = list(_set_problems(name, one))
        if not any(words(problem.text) for problem in found):
            raise UserError(
                f"contamination.sets.{name}.path = {one.path}",
                rule=f"none of its {len(found)} rows has a word, so it could never be found",
                fix=f"name the file and the columns that hold the problems' text in contamination.sets.{name}",
            )
        yield from found
