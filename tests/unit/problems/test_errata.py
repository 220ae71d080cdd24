"""Tests which problems LiveCodeBench's errata name, and how those problems count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.artifacts.hashing import hash_json, sha256_file
from megatron_ssd.config.build import build
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.problems.decontamination import evaluation_set_hashes
from megatron_ssd.problems.errata import apply_errata, flaw_of, slug
from megatron_ssd.schema import Problem
from tests.helpers.jsonl import write_jsonl
from tests.helpers.lcb_rows import benchmark, lcb_row, lcb_section

LEETCODE = {"platform": "leetcode"}


@pytest.fixture
def problems(tmp_path: Path) -> list[Problem]:
    """Three problems in the errata, and two that only resemble them."""
    rows = [
        lcb_row(1, question_id="abc362_c"),
        lcb_row(2, question_id="3413", question_title="Most Frequent IDs", **LEETCODE),
        lcb_row(3, question_id="abc362_d"),
        lcb_row(4, question_id="arc189_a"),
        lcb_row(5, question_id="1873_A", question_title="Find the Peaks", platform="codeforces"),
    ]
    return benchmark(write_jsonl(tmp_path / "test.jsonl", rows))


def test_flaws_are_known_by_id_or_leetcodes_title(problems: list[Problem]) -> None:
    assert [flaw_of(problem) for problem in problems] == [
        "several answers are right, and the tests know one", "a test is wrong", None, "a test is wrong", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("title", "written"),
    [
        ("Find the Peaks", "find-the-peaks"),
        ("Find Words Containing Character", "find-words-containing-character"),
        ("Generate Binary Strings Without Adjacent Zeros", "generate-binary-strings-without-adjacent-zeros"),
        ("Apply Operations to Make String Empty", "apply-operations-to-make-string-empty"),
        ("Most Frequent IDs", "most-frequent-ids"),
        ("  Alice's  (2nd) -- Walk ", "alices-2nd-walk"),
    ],
)
def test_titles_become_the_slugs_of_leetcodes_addresses(title: str, written: str) -> None:
    assert slug(title) == written


def test_another_benchmark_has_no_errata() -> None:
    assert flaw_of(Problem(id="abc362_c", source="rstar_coder", statement="", form="stdin")) is None


def test_flawed_problems_count_unless_they_are_dropped(problems: list[Problem]) -> None:
    kept, errata = apply_errata(problems, "keep")
    assert kept == problems
    assert errata.line == (
        "3 of 5 problems are in LiveCodeBench's errata; kept, as the official evaluation counts them"
    )
    left, errata = apply_errata(problems, "drop")
    assert [problem.id for problem in left] == ["abc362_d", "1873_A"]
    assert list(errata.flaws) == ["abc362_c", "3413", "arc189_a"]
    assert errata.line == "3 of 5 problems are in LiveCodeBench's errata; left out"


def test_without_flawed_problems_there_is_no_line(problems: list[Problem]) -> None:
    assert apply_errata(problems[2:3], "drop")[1].line == ""


def test_dropping_every_problem_is_an_error(problems: list[Problem]) -> None:
    with pytest.raises(UserError, match=r"all 2 problems are in LiveCodeBench's errata; .*errata=keep"):
        apply_errata(problems[:2], "drop")


def test_errata_do_not_change_the_problems(problems: list[Problem]) -> None:
    """Verdicts are reused by the hash of their problem, so that a new entry in the errata must not change it."""
    assert all(set(problem.metadata) == {"platform", "contest_id"} for problem in problems)


def test_the_errata_setting_does_not_change_which_training_problems_are_chosen(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", [lcb_row(1)])
    sections: list[dict[str, Any]] = [{}, {"errata": "keep"}, {"errata": "drop"}]
    configs = [build(RunConfig, {"benchmark": lcb_section(path, **section)}) for section in sections]
    hashes = [evaluation_set_hashes(config.contamination, config.benchmark, config.minicode) for config in configs]
    window = {"format": "livecodebench", "split": "test"}
    assert hashes[0] == hashes[1] == hashes[2]
    assert hashes[0]["benchmark livecodebench"] == hash_json([window, hash_json([sha256_file(path)])])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"format": "minicode", "errata": "drop"}, "benchmark.sets.any.errata = drop: is for livecodebench"),
        ({"format": "livecodebench", "path": "x", "errata": "some"}, "benchmark.sets.any.errata = 'some'"),
    ],
)
def test_invalid_settings_are_one_line(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(RunConfig, {"benchmark": {"sets": {"any": section}}})
