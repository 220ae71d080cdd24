"""Runs the canonical solutions of HumanEval+ and MBPP+, which decide time limits, expected values and flawed problems.

A canonical solution runs in the sandbox, outside of any program's limit, once per machine: what it took and returned is
kept in ``~/.cache/megatron_ssd/references`` (``$XDG_CACHE_HOME``), under a hash of all that decides it. Returned values
are kept as bytes that only sandboxes read.

A problem whose canonical solution fails is flawed: no program could pass it.

Limits are evalplus's (``evaluate.py``, ``config.py``): for each input the larger of 4 s and four times the canonical
solution's seconds, and 60 s for all inputs of a test. A script that has all inputs gets the larger of its benchmark's
limit and four times the canonical solution's seconds.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.atomic import cache_entry
from megatron_ssd.artifacts.hashing import cache_folder, hash_json
from megatron_ssd.errors import UserError
from megatron_ssd.sandbox.execution import Failure
from megatron_ssd.sandbox.sandbox import Limits, Program, Reference, Sandbox
from megatron_ssd.schema import Problem, Verdict

log = logging.getLogger(__name__)

FLAWED = "flawed problem: its canonical solution fails"
SECONDS_FOR_ALL = 60.0
_SECONDS_PER_INPUT, _FACTOR = 4.0, 4.0
_REVISION = 1  # of the files
_FACTS = "facts.json"
_CPU_SECONDS, _MEMORY_BYTES, _OUTPUT_BYTES = 600.0, 8 << 30, 1 << 20
_LIMITS = Limits(cpu_seconds=_CPU_SECONDS, wall_seconds=4 * _CPU_SECONDS, memory_bytes=_MEMORY_BYTES,
                 output_bytes=_OUTPUT_BYTES)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalRun:
    """What the canonical solution of a problem did.

    ``flaw`` says why it fails (empty if it passes), ``seconds`` has its CPU seconds for each input of each test, one
    for each script. ``folder`` has the results for each test of an ``evalplus`` problem.
    """

    flaw: str
    seconds: tuple[tuple[float, ...], ...]
    folder: Path

    def script_seconds(self, limit: float) -> float:
        """CPU seconds for a script, if its benchmark's limit is ``limit``."""
        return max(limit, _FACTOR * sum(map(sum, self.seconds)))

    def reference(self, problem: Problem, test: int, *, at_least: float | None, factor: float) -> Reference:
        """The reference of one test.

        Args:
            problem: of the form ``evalplus``.
            test: index of the test.
            at_least: CPU seconds that each input gets, None for evalplus's own number.
            factor: of all limits, for a first run.
        """
        least = _SECONDS_PER_INPUT if at_least is None else at_least
        return Reference(
            file=self.folder / f"{test}.pickle.gz",
            rule=problem.metadata["rule"],
            atol=problem.metadata["atol"],
            cpu_seconds=tuple(factor * max(least, _FACTOR * seconds) for seconds in self.seconds[test]),
        )


class References:
    """Canonical runs by problem, for any number of threads."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[Problem, CanonicalRun]] = {}  # by identity, since benchmarks may share ids
        self._locks: dict[int, threading.Lock] = {}

    def find(self, problem: Problem, program: Program, sandbox: Sandbox) -> CanonicalRun | None:
        """The canonical run of a problem, from memory, from the cache, or made now; None if it has no solution.

        Args:
            problem: with its tests.
            program: any program of the problem, whose names and recursion limit are used.
            sandbox: where the canonical solution runs.

        Raises:
            UserError: the cache cannot be written.
            SandboxBrokenError: the sandbox failed.
        """
        source = problem.metadata.get("canonical_solution")
        if source is None:
            return None
        with self._locks.setdefault(id(problem), threading.Lock()):
            if id(problem) not in self._runs:
                run = _cached_run(problem, dataclasses.replace(program, source=source), sandbox)
                self._runs[id(problem)] = problem, run
                if run.flaw:
                    log.warning("%s: %s", problem.id, run.flaw)
            return self._runs[id(problem)][1]


def _cached_run(problem: Problem, canonical: Program, sandbox: Sandbox) -> CanonicalRun:
    key = [_REVISION, platform.node(), platform.python_version(), dataclasses.asdict(canonical), problem.metadata,
           [test.input for test in problem.tests]]  # fmt: skip
    folder = cache_folder() / "references" / hash_json(key)
    facts = folder / _FACTS
    if not facts.is_file():
        try:
            with cache_entry(folder) as unfinished:
                unfinished.mkdir()
                content = _run(problem, canonical, sandbox, unfinished)
                (unfinished / _FACTS).write_text(json.dumps(content), encoding="utf-8")
        except OSError as error:
            raise UserError(f"folder {folder.parent}", rule=f"cannot be written ({error.strerror})",
                            fix="set XDG_CACHE_HOME to a folder with free space") from None  # fmt: skip
    found: Mapping[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
    return CanonicalRun(flaw=found["flaw"], seconds=tuple(map(tuple, found["seconds"])), folder=folder)


def _run(problem: Problem, canonical: Program, sandbox: Sandbox, folder: Path) -> dict[str, Any]:
    """Facts of a new run, whose results are written to ``folder``."""
    if problem.form != "evalplus":
        execution = sandbox.execute(canonical, [test.input for test in problem.tests], _LIMITS)
        flaw = "" if execution.ending == "completed" else f"{FLAWED} ({execution.detail or execution.ending})"
        return {"flaw": flaw, "seconds": [[execution.cpu_total]]}
    seconds = []
    for number, test in enumerate(problem.tests):
        file = folder / f"{number}.pickle.gz"
        result = sandbox.make_reference(canonical, test.input, problem.metadata["rule"], _LIMITS, file)
        if isinstance(result, Failure):
            return {"flaw": f"{FLAWED} ({result.detail})", "seconds": []}
        seconds.append(result)
    return {"flaw": "", "seconds": seconds}


def is_flawed(verdict: Verdict) -> bool:
    """Whether a program was not graded because its problem is flawed."""
    return verdict.status == "infrastructure_error" and verdict.detail.startswith(FLAWED)
