"""LiveCodeBench's errata: the problems that its authors list as flawed.

Source: ERRATA.md of github.com/LiveCodeBench/LiveCodeBench at commit b0fc86b1e20d (8 July 2025). AtCoder's problems are
listed by id, LeetCode's by the title in their address. The official evaluation counts all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_ssd.config.problems import ErrataChoice
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Problem

_BY_FLAW = {
    "several answers are right, and the tests know one": (
        "abc311_c", "abc326_d", "abc327_b", "abc333_e", "abc343_a", "abc343_e", "abc362_c", "arc185_c",
        "find-the-peaks", "find-words-containing-character", "generate-binary-strings-without-adjacent-zeros",
    ),
    "interactive, so that no program can pass": ("abc337_e", "abc355_e"),
    "a test is wrong": (
        "abc350_c", "arc189_a", "apply-operations-to-make-string-empty", "most-frequent-ids",
    ),
}  # fmt: skip
_FLAWS = {name: flaw for flaw, names in _BY_FLAW.items() for name in names}


@dataclass(frozen=True, kw_only=True)
class Errata:
    """The flawed problems of a benchmark of ``num_problems``: ``flaws`` by problem id, and whether they are kept."""

    flaws: dict[str, str]
    num_problems: int
    kept: bool

    @property
    def line(self) -> str:
        """The errata in one sentence; empty if no problem is flawed."""
        if not self.flaws:
            return ""
        decision = "kept, as the official evaluation counts them" if self.kept else "left out"
        return f"{len(self.flaws)} of {self.num_problems} problems are in LiveCodeBench's errata; {decision}"


def flaw_of(problem: Problem) -> str | None:
    """The flaw of ``problem`` according to the errata; None if they do not list it."""
    if problem.source != "livecodebench":
        return None
    name = slug(problem.title) if problem.metadata.get("platform") == "leetcode" else problem.id
    return _FLAWS.get(name)


def slug(title: str) -> str:
    """``Most Frequent IDs`` as ``most-frequent-ids``."""
    return "-".join(re.findall(r"[a-z0-9]+", title.lower().replace("'", "")))


def apply_errata(problems: Sequence[Problem], choice: ErrataChoice) -> tuple[list[Problem], Errata]:
    """The problems that count, in their order, and the errata of all problems.

    Raises:
        UserError: every problem is flawed and left out.
    """
    flaws = {problem.id: flaw for problem in problems if (flaw := flaw_of(problem)) is not None}
    errata = Errata(flaws=flaws, num_problems=len(problems), kept=choice == "keep")
    counted = [problem for problem in problems if errata.kept or problem.id not in flaws]
    if problems and not counted:
        raise UserError("errata = drop", rule=f"all {len(problems)} problems are in LiveCodeBench's errata",
                        fix="widen the window, or keep them with errata=keep")  # fmt: skip
    return counted, errata
