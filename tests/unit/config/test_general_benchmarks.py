"""Tests the checks of the section ``general_benchmarks``."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ssd.config.build import build
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError


def test_no_task_runs_by_default() -> None:
    assert build(RunConfig, {}).general_benchmarks.tasks == ()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"tasks": ["mmlu", "mmlu"]}, "names a task twice"),
        (
            {"tasks": ["mmlu"], "data": {"aime25": "rows.jsonl"}},
            r"general_benchmarks.data.aime25: is for a task that is not run",
        ),
        ({"tasks": ["mmlu", "mbpp_plus"]}, r"tasks: mbpp_plus: is a benchmark of the .*use benchmark=mbpp_plus"),
        ({"tasks": ["humaneval_instruct"]}, r"tasks: humaneval_instruct: .*use benchmark=humaneval"),
        ({"limit": 0}, "general_benchmarks.limit = 0: must be positive"),
        ({"max_gen_toks": -1}, "general_benchmarks.max_gen_toks = -1: must be positive"),
        (
            {"tasks": ["mmlu"], "num_fewshot": {"mmlu": -1}},
            "general_benchmarks.num_fewshot.mmlu = -1: must not be negative",
        ),
        ({"task": ["mmlu"]}, "did you mean general_benchmarks.tasks"),
    ],
)
def test_invalid_values_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(RunConfig, {"general_benchmarks": section})


def test_the_server_backend_is_refused() -> None:
    engine = {"backend": "server", "endpoints": ["http://host:8000/v1"]}
    with pytest.raises(ConfigError, match=r"general_benchmarks.tasks = \['mmlu'\]: lm-eval runs on engines of its own"):
        build(RunConfig, {"engine": engine, "general_benchmarks": {"tasks": ["mmlu"]}})


def test_the_old_section_name_is_refused_with_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"did you mean general_benchmarks\?"):
        build(RunConfig, {"regression": {"tasks": ["mmlu"]}})
