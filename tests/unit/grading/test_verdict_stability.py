"""Tests that a busy machine does not change verdicts, even of programs that are close to their limits."""

from __future__ import annotations

from benchmarks.grading import busy, changed_verdicts, grade
from benchmarks.grading_cases import stability_problems, stability_programs
from megatron_ssd.config.evaluation import SandboxConfig

LIMITS = SandboxConfig(cpu_seconds=0.15, memory_mib=256, output_mib=1)


def test_the_same_verdicts_idle_and_busy():
    # Other tests run meanwhile, so the speed of the machine is known only roughly.
    programs = stability_programs(33, LIMITS, below=(0.3, 0.5), above=(1.7, 2.4))
    idle, _ = grade(stability_problems(), programs, LIMITS)
    with busy(2):
        loaded, _ = grade(stability_problems(), programs, LIMITS)
    assert changed_verdicts(idle, loaded) == []
    assert {verdict.status for verdict in idle} == {
        "passed", "wrong_answer", "runtime_error", "memory", "timeout",
    }  # fmt: skip
