"""The problems of a run: what there is to sample on, and what to be judged on.

Invariants: order and content follow from the configuration and the files alone; a benchmark's ids are unique.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.config.problems import ProblemsConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.problems import livecodebench, minicode
from megatron_ssd.problems.rows import open_rows, read_candidates
from megatron_ssd.problems.selection import Candidate
from megatron_ssd.problems.table import Table
from megatron_ssd.schema import Problem


@dataclasses.dataclass(frozen=True)
class Source:
    """Training problems before any choice, read one at a time.

    ``revision`` is the Hub's commit, or a hash of the files (of the configuration for a procedural world).
    """

    section: ProblemsConfig
    revision: str
    _config: RunConfig
    _table: Table | None

    def candidates(self) -> Iterator[Candidate]:
        """Every row, in order. Raises ``UserError`` where one cannot be read."""
        if self._table is None:
            return map(Candidate, minicode.train_problems(self._config.minicode))
        return read_candidates(self._table, self.section)


def open_source(config: RunConfig) -> Source:
    """Find the training problems. Raises ``UserError`` where no source is named or nothing is there."""
    section = needed(config.problems, "problems", fix="name a source, for example problems=minicode")
    if section.name == "minicode":
        return Source(section, hash_json(dataclasses.asdict(config.minicode)), config, None)
    table = open_rows(section)
    return Source(section, table.identity, config, table)


def load_benchmark(config: RunConfig) -> list[Problem]:
    """Evaluation problems, each with its tests; those in the errata too (see ``errata.apply_errata``).

    Raises:
        UserError: no benchmark is named, it cannot be read, or its window is empty.
    """
    section = needed(config.benchmark, "benchmark", fix="name one, for example benchmark=minicode")
    if section.name == "livecodebench":
        return livecodebench.read_benchmark(section)
    return minicode.test_problems(config.minicode)[: section.limit]
