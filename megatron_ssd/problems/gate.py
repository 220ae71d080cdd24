"""The gate between training problems and evaluation sets: what is looked for, and what happens to a hit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.config.problems import ContaminationConfig, EvaluationSetConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems.contamination import ContaminationIndex, EvaluationProblem, Hit
from megatron_ssd.problems.source import load_benchmark
from megatron_ssd.problems.table import open_table
from megatron_ssd.schema import Problem

HITS_FILE = "contamination.jsonl"
_KEY = "contamination.sets.path"


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
        self._hits: dict[str, list[Hit]] = {}

    def drops(self, problem: Problem) -> bool:
        """Look for ``problem`` in the sets, remember what was found, and say whether it is dropped for that."""
        found = self._index.hits(problem.id, f"{problem.statement}\n{problem.starter_code}")
        if found:
            self._hits[problem.id] = found
        return bool(found) and self._section.on_hit == "drop"

    def report(self, folder: Path, *, kept: set[str]) -> int:
        """Write the hits to ``folder``; returns how many problems of ``kept`` have one.

        Raises:
            UserError: they are more than ``contamination.max_hits`` and ``on_hit`` is ``refuse``.
        """
        path = folder / HITS_FILE
        path.unlink(missing_ok=True)
        with JsonlWriter(path) as writer:
            for hits in self._hits.values():
                for hit in hits:
                    writer.write({**dataclasses.asdict(hit), "kept": hit.problem_id in kept})
        among_kept = [id_ for id_ in self._hits if id_ in kept]
        if self._section.on_hit == "refuse" and len(among_kept) > self._section.max_hits:
            first = self._hits[among_kept[0]][0]
            raise UserError(
                f"{len(among_kept)} training problem(s) in evaluation sets, the first {first.problem_id}, which holds "
                f"{first.overlap:.0%} of {first.set_name}'s {first.evaluation_id}",
                rule=f"contamination.max_hits = {self._section.max_hits}, and a score on what was trained on says "
                f"nothing; all are in {path}",
                fix="drop them with contamination.on_hit=drop, or go on all the same with contamination.on_hit=keep",
            )
        return len(among_kept)


def gate_inputs(config: RunConfig) -> dict[str, str]:
    """Role -> hash of every evaluation set that the gate reads."""
    found = {f"evaluation set {one.name}": _hash(one) for one in config.contamination.sets}
    if config.benchmark is not None:
        found["benchmark"] = _benchmark_hash(config)
    return found


def _benchmark_hash(config: RunConfig) -> str:
    assert config.benchmark is not None
    window = {key: value for key, value in dataclasses.asdict(config.benchmark).items() if key != "path"}
    if config.benchmark.name == "minicode":
        return hash_json([window, dataclasses.asdict(config.minicode)])
    table = open_table(str(config.benchmark.path), key="benchmark.path")
    return hash_json([window, table.identity])


def _hash(one: EvaluationSetConfig) -> str:
    table = open_table(one.path, key=_KEY)
    return hash_json([table.identity, list(one.columns)])


def _evaluation_problems(config: RunConfig) -> Iterator[EvaluationProblem]:
    if config.benchmark is not None:
        # Problems of the small world are built from the same phrases; theirs are the same problem when all words are.
        exact_only = config.benchmark.name == "minicode"
        for problem in load_benchmark(config):
            text = f"{problem.statement}\n{problem.starter_code}" if exact_only else problem.statement
            yield EvaluationProblem(set_name=config.benchmark.name, id=problem.id, text=text, exact_only=exact_only)
    for one in config.contamination.sets:
        for number, row in enumerate(open_table(one.path, key=_KEY).rows(one.columns), start=1):
            text = "\n".join(str(row.values[column]) for column in one.columns if row.values[column] is not None)
            yield EvaluationProblem(set_name=one.name, id=f"row {number}", text=text)
