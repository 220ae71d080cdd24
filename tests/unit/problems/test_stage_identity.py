"""Tests the error message for problems that were chosen with another configuration."""

from pathlib import Path

import pytest

from megatron_ssd.cli.compose import compose_config
from megatron_ssd.errors import UserError
from megatron_ssd.problems.stage import problems_stage, run_problems


def test_a_changed_key_of_minicode_is_named(tmp_path: Path) -> None:
    overrides = ["experiment=demo", f"run_dir={tmp_path}", "minicode.num_test_problems=12"]
    run_problems(compose_config([*overrides, "minicode.num_train_problems=40"]))
    with pytest.raises(UserError, match=r"configuration \(minicode\.num_train_problems: 40 then, 30 now\)"):
        problems_stage(compose_config([*overrides, "minicode.num_train_problems=30"])).is_current()
