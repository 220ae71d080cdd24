"""Grades programs on all cores.

Invariants:
- A program that has a record in the verdict file is never graded again, so a killed run can resume.
- Identical programs of one problem run once, over all files of a ``Grader``, and share the result.
- An inconclusive result (see ``checker``) is not written. The result of the second run, alone, is written instead.
- ``infrastructure_error`` is written only if the checker failed, and says nothing about the program.
- At most ``WINDOW`` programs are in memory at a time. All verdicts and results are.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from megatron_ssd.artifacts.jsonl import FileCursor, JsonlWriter, iter_complete_records
from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.grading.checker import Checker, CheckResult, verdict_of
from megatron_ssd.grading.references import References
from megatron_ssd.grading.rules import program_of_response
from megatron_ssd.schema import Problem, Sample, Verdict

WINDOW = 2048
Key = tuple[str, str]  # problem id, hash of the program


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One program to grade. ``source`` is None if there is no program, and ``note`` then says why."""

    problem_id: str
    sample_index: int
    source: str | None
    note: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """The key in a verdict file: (problem id, sample index)."""
        return self.problem_id, self.sample_index


class Grader(AbstractContextManager["Grader"]):
    """A pool of checkers, one per core, for any number of verdict files of one set of problems.

    Args:
        problems: with their tests.
        config: sandbox kind, limits and number of workers.
        prompt_opens_thinking: see ``extract_program``.

    Raises:
        UserError: a problem has no test, or the sandbox cannot start.
    """

    def __init__(
        self, problems: Iterable[Problem], config: SandboxConfig, *, prompt_opens_thinking: bool = False
    ) -> None:
        self._problems = {problem.id: problem for problem in problems}
        for problem in self._problems.values():
            if not problem.tests:
                raise UserError(f"problem {problem.id}", rule="has no test", fix="leave it out of the benchmark")
        self._config = config
        self._prompt_opens_thinking = prompt_opens_thinking
        self._results: dict[Key, Verdict] = {}  # of any sample with this program
        self._local = threading.local()
        self._references = References()
        # The first checker is for second runs. The others belong to the pool's threads.
        self._checkers = [Checker(config, self._references)]
        self._checkers[0].start()  # raises errors now, not after hours of decoding
        self._pool = ThreadPoolExecutor(config.workers or len(os.sched_getaffinity(0)))

    def grade_programs(
        self, programs: Iterable[Submission], path: Path, advance: Callable[[int], object] = lambda count: None
    ) -> list[Verdict]:
        """Verdicts of ``programs``, in their order; those that ``path`` lacks are computed and appended.

        Args:
            programs: of one model and setting.
            path: the JSONL file of their verdicts.
            advance: called with the number of programs that got their verdict.
        """
        verdicts, order = read_verdicts(path), list[tuple[str, int]]()
        programs = iter(programs)
        with JsonlWriter(path) as writer:
            while window := list(itertools.islice(programs, WINDOW)):
                order += [program.key for program in window]
                for verdict, is_new in self._grade_window(window, verdicts):
                    if is_new:
                        writer.write(verdict.to_json())
                        verdicts[verdict.key] = verdict
                    advance(1)
        return [verdicts[key] for key in order]

    def _grade_window(
        self, window: Sequence[Submission], verdicts: Mapping[tuple[str, int], Verdict]
    ) -> Iterator[tuple[Verdict, bool]]:
        """Each program's verdict as soon as it is final, and whether it is new."""
        waiting: dict[Key, list[Submission]] = {}
        for program in window:
            text = (program.source or "").encode("utf-8", "surrogatepass")
            key = program.problem_id, hashlib.sha256(text).hexdigest()
            if program.key in verdicts:
                self._remember(key, verdicts[program.key])
                yield verdicts[program.key], False
            elif program.source is None:
                found = verdict_of(self._problems[program.problem_id], "no_code", detail=program.note)
                yield replace(found, sample_index=program.sample_index), True
            else:
                waiting.setdefault(key, []).append(program)
        for key, result in self._check_all({key: programs[0].source or "" for key, programs in waiting.items()}):
            for program in waiting[key]:
                yield replace(result, sample_index=program.sample_index), True

    def _check_all(self, sources: dict[Key, str]) -> Iterator[tuple[Key, Verdict]]:
        """Results as soon as they are final. Each is remembered, except those in which the checker failed."""
        fresh = [key for key in sources if key not in self._results]
        yield from ((key, self._results[key]) for key in sources if key in self._results)
        inconclusive: list[Key] = []
        for key, result in zip(fresh, self._pool.map(lambda key: self._check(key, sources[key]), fresh), strict=True):
            if result.inconclusive:
                inconclusive.append(key)
            else:
                yield self._remember(key, result.verdict)
        for key in inconclusive:
            result = self._checkers[0].check(self._problems[key[0]], sources[key], alone=True)
            yield self._remember(key, result.verdict)

    def _remember(self, key: Key, verdict: Verdict) -> tuple[Key, Verdict]:
        if verdict.status != "infrastructure_error":
            self._results[key] = verdict
        return key, verdict

    def _check(self, key: Key, source: str) -> CheckResult:
        """Check a program in a thread of the pool.

        Each thread has its own checker, because a container dies with the thread that started it.
        """
        if not hasattr(self._local, "checker"):
            self._local.checker = Checker(self._config, self._references)
            self._checkers.append(self._local.checker)
        checker: Checker = self._local.checker
        return checker.check(self._problems[key[0]], source)

    def submission(self, sample: Sample) -> Submission:
        """The program in the response of ``sample``, by the rule of its benchmark."""
        problem = self._problems[sample.problem_id]
        found = program_of_response(problem, sample.response, prompt_opens_thinking=self._prompt_opens_thinking)
        skipped = sample.finish_reason == "skipped"
        return Submission(
            problem_id=sample.problem_id,
            sample_index=sample.sample_index,
            source=found.program,
            note=f"not run: {sample.skip_reason}" if skipped else found.cause or "",
        )

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel programs that have not started, and stop every container."""
        self._pool.shutdown(cancel_futures=True)
        for checker in self._checkers:
            checker.close()


def read_verdicts(path: Path) -> dict[tuple[str, int], Verdict]:
    """The complete records of a verdict file by (problem id, sample index); empty if there is no file yet."""
    if not path.exists():
        return {}
    verdicts = (Verdict.from_json(record) for record, _ in iter_complete_records(path, FileCursor()))
    return {verdict.key: verdict for verdict in verdicts}
