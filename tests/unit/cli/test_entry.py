"""Tests what an entry point prints and its exit status."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ssd.artifacts.hub import locate_model
from megatron_ssd.cli import entry, pipeline, stages
from megatron_ssd.cli.compose import SHIPPED, base_run
from megatron_ssd.config.run import BaseConfig, RunConfig
from megatron_ssd.errors import Requeue, UserError
from megatron_ssd.process import PARENT_REPORTS
from tests.helpers.tiny_hf import MODELS, write_hf_config


def _raise(error: BaseException) -> None:
    raise error


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The entry point with these arguments in place of the command line's."""

    def run(stage: Callable[[RunConfig], None], *arguments: str, description: str = "") -> None:
        monkeypatch.setattr("sys.argv", ["script", *arguments])
        entry.main(stage, description=description)

    return run


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("key = 3", rule="must be even", fix="use 4"), 2, "error: key = 3: must be even; use 4\n"),
        (KeyboardInterrupt(), 130, "interrupted: finished work is kept; run the same command to resume\n"),
        (Requeue(), 75, "stopped before the end: the state is saved; run the same command to resume\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x"), 1,
         "error: disk full at runs/x: finished work is kept; free some space and run the same command to resume\n"),
    ],
)  # fmt: skip
def test_expected_errors_are_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        entry.run_guarded(lambda: _raise(error))
    assert caught.value.code == status
    assert capsys.readouterr().err == line


def test_under_the_pipeline_an_interruption_is_printed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PARENT_REPORTS, "1")
    with pytest.raises(SystemExit) as caught:
        entry.run_guarded(lambda: _raise(KeyboardInterrupt()))
    assert (caught.value.code, capsys.readouterr().err) == (130, "")


def test_a_stage_without_model_path_suggests_the_configured_base(
    main: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overrides = ["experiment=demo", f"base.base_dir={tmp_path}", f"run_dir={tmp_path}/run"]
    _, run_dir = base_run(BaseConfig(experiment="demo_base", base_dir=str(tmp_path)), SHIPPED)

    def stage(config: RunConfig) -> None:
        assert config.model is not None
        locate_model(config.model.path, config.model.revision)

    for made, fix in ((False, f"launch/pipeline.py makes the base model of this configuration, {run_dir}/export"),
                      (True, f"set model.path={run_dir}/export")):  # fmt: skip
        if made:
            (run_dir / "export").mkdir(parents=True)
        with pytest.raises(SystemExit):
            main(stage, *overrides)
        error = capsys.readouterr().err
        assert error.startswith("error: model.path = null: this needs a trained model; ")
        assert fix in error
    with pytest.raises(SystemExit):
        main(stage, "model=tiny")
    assert capsys.readouterr().err.endswith("; set model.path to a Hugging Face folder\n")


def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGATRON_SSD_TRACEBACK", "")
    with pytest.raises(UserError):
        entry.run_guarded(lambda: _raise(UserError("a", rule="b", fix="c")), traceback=True)


def test_an_internal_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        entry.run_guarded(lambda: _raise(ZeroDivisionError()))


def test_only_one_process_of_a_node_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        entry.run_guarded(lambda: _raise(UserError("a", rule="b", fix="c")))
    assert capsys.readouterr().err == ""


def test_the_pipeline_logs_each_step_and_separates_the_base(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(entry, "start_logging", lambda: None)
    monkeypatch.setattr(pipeline, "check_machine", lambda config: None)
    _, run_dir = base_run(BaseConfig(experiment="demo_base", base_dir=str(tmp_path)), SHIPPED)

    def run_child(command: list[str], *, report_follows: bool) -> int:
        if any(word.endswith("launch/export.py") for word in command):
            (run_dir / "export").mkdir(parents=True)
            write_hf_config(run_dir / "export", MODELS["qwen3"])
        return 0

    monkeypatch.setattr(pipeline, "run_child", run_child)
    for name, script in stages.LOOP.items():  # the folders of earlier stages do not exist
        monkeypatch.setitem(stages.LOOP, name, dataclasses.replace(script, open_stage=_never_current))
    steps = [dataclasses.replace(script, open_stage=_never_current) for script in pipeline.BASE]
    monkeypatch.setattr(pipeline, "BASE", steps)
    overrides = ["experiment=demo", f"base.base_dir={tmp_path}", f"run_dir={tmp_path}/run", "--until=samples"]
    monkeypatch.setattr("sys.argv", ["pipeline.py", *overrides])
    with caplog.at_level("INFO"):
        pipeline.main()
    messages = [record.getMessage().removeprefix("pipeline: ") for record in caplog.records]
    assert messages[0].startswith(
        f"problems to samples, 2 stages in {tmp_path}/run; a base model is made or found before the second"
    )
    assert messages[1].startswith("stage 1 of 2: choose the problems")
    assert messages[2] == f"base model: 3 steps in {run_dir}, once"
    assert [line.partition(":")[0] for line in messages[3:6]] == [f"base model, step {n} of 3" for n in (1, 2, 3)]
    assert messages[6] == f"base model ready: {run_dir}/export"
    assert messages[7] == ("stage 2 of 2: sample responses to the problems from the frozen model with vLLM "
                       "(launch/generate.py)")  # fmt: skip
    assert messages[8].startswith("2 stages done in ")


class _NeverCurrent:
    def is_current(self) -> bool:
        return False


def _never_current(config: RunConfig) -> Any:
    return _NeverCurrent()


def test_the_pipeline_prints_its_configuration_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["pipeline.py", "+experiment=demo", f"run_dir={tmp_path}/run", "--cfg", "job"])
    pipeline.main()
    assert yaml.safe_load(capsys.readouterr().out)["run_dir"] == f"{tmp_path}/run"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("status", "can_resume"), [(1, True), (2, False), (-9, True)])
def test_the_pipeline_suggests_resuming_unless_the_user_must_fix_something(
    caplog: pytest.LogCaptureFixture, status: int, can_resume: bool
) -> None:
    assert pipeline._failed(pipeline.LOOP["samples"], status) == (status if status > 0 else 137)
    assert ("run the same command to resume" in caplog.text) is can_resume
    assert ("fix the error above" in caplog.text) is not can_resume


def test_print_config_shows_the_composed_yaml_and_starts_nothing(
    main: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    main(lambda _: pytest.fail("started"), "+experiment=demo", "--cfg", "job")
    assert "temperature: 1.5" in capsys.readouterr().out


def test_options_may_come_between_overrides(main: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    main(lambda _: None, "+experiment=demo", "--cfg", "job", "seed=77")
    assert "seed: 77" in capsys.readouterr().out


def test_help_lists_the_configuration_groups(main: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(lambda _: None, "--help", description="What it does.")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "What it does." in shown
    assert "qwen3_30b" in shown


def test_the_stage_gets_the_checked_configuration(main: Callable[..., None]) -> None:
    seen = []
    main(seen.append, "+experiment=demo", "seed=5")
    assert seen[0].seed == 5
