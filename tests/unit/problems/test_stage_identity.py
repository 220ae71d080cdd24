"""Tests which changes of the configuration mean other problems."""

import json
from pathlib import Path

import pytest

from megatron_ssd.cli.compose import compose_config
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems.stage import problems_stage, run_problems
from tests.helpers.jsonl import write_jsonl


def test_a_changed_key_of_minicode_is_named(tmp_path: Path) -> None:
    overrides = ["experiment=demo", f"run_dir={tmp_path}", "minicode.num_test_problems=12"]
    run_problems(compose_config([*overrides, "minicode.num_train_problems=40"]))
    with pytest.raises(UserError, match=r"configuration \(minicode\.num_train_problems: 40 then, 30 now\)"):
        problems_stage(compose_config([*overrides, "minicode.num_train_problems=30"])).is_current()


def of_file(tmp_path: Path, *more: str) -> RunConfig:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "Print the sum of two numbers."}])
    return compose_config([f"run_dir={tmp_path}", "problems=rows", f"problems.path={rows}", "benchmark=minicode",
                           "problems.columns.statement=text", "minicode.num_test_problems=12", *more])  # fmt: skip


def test_problems_of_a_file_do_not_depend_on_the_corpus_of_minicode(tmp_path: Path) -> None:
    run_problems(of_file(tmp_path))
    for key in ("noise=0.5", "num_documents=7", "vocab_size=99", "num_train_problems=3"):
        assert problems_stage(of_file(tmp_path, f"minicode.{key}")).is_current(), key
    for key in ("seed", "num_test_problems", "tests_per_problem"):
        with pytest.raises(UserError, match=rf"configuration \(minicode\.{key}: \d+ then, 3 now\)"):
            problems_stage(of_file(tmp_path, f"minicode.{key}=3")).is_current()


def test_keys_that_an_earlier_version_recorded_or_lacked_do_not_matter(tmp_path: Path) -> None:
    run_problems(of_file(tmp_path))
    path = tmp_path / "problems" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["minicode"] |= {"num_documents": 42_000, "vocab_size": 512, "num_train_problems": 40}
    del manifest["config"]["problems"]["near_duplicates"]  # null
    path.write_text(json.dumps({**manifest, "identity": "of another form"}))
    assert problems_stage(of_file(tmp_path)).is_current()
    with pytest.raises(UserError, match=r"configuration \(problems.near_duplicates: null then, 0.8 now\)"):
        problems_stage(of_file(tmp_path, "problems.near_duplicates=0.8")).is_current()
