"""The problems of a run: what to sample on, and what to be judged on.

Invariants: ids are unique within a set; order and content follow from the configuration and the files alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_ssd.config.problems import ProblemsConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import UserError
from megatron_ssd.problems import livecodebench, minicode, rstar_coder
from megatron_ssd.problems.dedup import deduplicate
from megatron_ssd.schema import Problem


@dataclass(frozen=True)
class ProblemSet:
    """Problems, and how many were left out for which reason."""

    problems: list[Problem]
    dropped: dict[str, int] = field(default_factory=dict)


def load_problem_set(config: RunConfig) -> ProblemSet:
    """Training problems with counts of what was dropped: ``empty``, ``duplicate``, ``over_limit``.

    Raises:
        UserError: no source is named, the source cannot be read, or nothing is left.
    """
    section = needed(config.problems, "problems", fix="name a source, for example problems=minicode")
    found = minicode.train_problems(config.minicode) if section.name == "minicode" else _read(section)
    kept = [problem for problem in found if problem.statement.strip()]
    dropped = {"empty": len(found) - len(kept)}
    if section.deduplicate:
        kept, dropped["duplicate"] = deduplicate(kept, lambda problem: problem.statement)
    if section.limit is not None:
        dropped["over_limit"] = max(0, len(kept) - section.limit)
        kept = kept[: section.limit]
    if not kept:
        raise UserError(f"problems.path = {section.path}", rule="holds no problem", fix="name a folder that does")
    return ProblemSet(problems=kept, dropped={reason: count for reason, count in dropped.items() if count})


def load_problems(config: RunConfig) -> list[Problem]:
    """Training problems. See ``load_problem_set``."""
    return load_problem_set(config).problems


def load_benchmark(config: RunConfig) -> list[Problem]:
    """Evaluation problems, each with its tests.

    Raises:
        UserError: no benchmark is named, it cannot be read, or its window is empty.
    """
    section = needed(config.benchmark, "benchmark", fix="name one, for example benchmark=minicode")
    if section.name == "livecodebench":
        return livecodebench.read_benchmark(section)
    return minicode.test_problems(config.minicode)[: section.limit]


def _read(section: ProblemsConfig) -> list[Problem]:
    return list(rstar_coder.read_problems(str(section.path)))
