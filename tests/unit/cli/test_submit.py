"""Tests for the jobs that launch/submit.py submits; tests/cluster submits them to a SLURM."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.cli import submit
from megatron_ssd.cli.compose import SHIPPED
from megatron_ssd.cli.submit import Step, job_environment, job_options, plan_steps, shell_script, steps_to_run
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError

ON_GPUS = ("experiment=b200_64k", "problems=rstar_coder", "benchmark=humaneval_plus", "cluster.gpu=B200")


def steps(*overrides: str, until: str = "report") -> dict[str, Step]:
    return {step.name: step for step in plan_steps(overrides, SHIPPED, until)}


def test_stages_ask_for_gpus_only_where_they_use_them(tmp_path: Path) -> None:
    gpus = {
        name: next((option for option in job_options(step) if option.startswith("--gpus-per-node")), None)
        for name, step in steps(*ON_GPUS, f"run_dir={tmp_path}/30b").items()
    }
    eight = "--gpus-per-node=8"
    assert gpus == {"problems": None, "samples": eight, "dataset": None, "checkpoints": eight,
                    "export": "--gpus-per-node=1", "eval": eight, "report": None}  # fmt: skip


def test_jobs_that_use_whole_nodes_get_all_of_their_cores_and_memory(tmp_path: Path) -> None:
    found = steps(*ON_GPUS, f"run_dir={tmp_path}/30b", "cluster.cpu_options=['--mem=7G']")
    for name in ("samples", "checkpoints", "eval"):
        assert {"--exclusive", "--mem=0"} <= set(job_options(found[name]))
    assert "--mem=7G" in job_options(found["dataset"])
    assert "--exclusive" not in job_options(found["dataset"])


def test_the_keys_of_the_cluster_become_options_and_variables(tmp_path: Path) -> None:
    found = steps(
        *ON_GPUS, f"run_dir={tmp_path}/30b", "cluster.partition=main", "cluster.cpu_partition=cpu",
        "cluster.account=lab",
        "cluster.qos=high",
        "cluster.times={samples: '8:00:00'}", "cluster.options=['--constraint=ib']", "cluster.samples_nodes=4",
        "cluster.images={train: /images/train.sqsh}", "cluster.mounts=['/scratch:/scratch','/data:/data']",
        "cluster.environment={HF_HOME: /scratch/hf}", "cluster.setup=['module load cuda','ulimit -l unlimited']",
    )  # fmt: skip
    options = job_options(found["samples"])
    assert {"--partition=main", "--account=lab", "--qos=high", "--time=8:00:00", "--constraint=ib", "--array=0-3",
            "--job-name=ssd-samples-30b"} <= set(options)  # fmt: skip
    assert f"--output={tmp_path}/30b/slurm/samples-%A_%a.log" in options
    assert "--partition=cpu" in job_options(found["dataset"])
    assert "--partition=main" in job_options(found["export"])  # it uses a GPU
    assert not any(option.startswith("--time") for option in job_options(found["dataset"]))
    of_training, of_sampling = job_environment(found["checkpoints"]), job_environment(found["samples"])
    assert of_training == {
        "HF_HOME": "/scratch/hf", "IMAGE": "/images/train.sqsh", "MOUNTS": "/scratch:/scratch,/data:/data",
        "SETUP": "module load cuda\nulimit -l unlimited", "GPUS_PER_NODE": "8",
    }  # fmt: skip
    assert "IMAGE" not in of_sampling
    assert of_sampling["PYTHON"]


def test_training_takes_the_nodes_of_its_layout(tmp_path: Path) -> None:
    two = steps("experiment=h100x16_64k", "problems=rstar_coder", "benchmark=humaneval_plus", f"run_dir={tmp_path}")
    assert {"--nodes=2", "--gpus-per-node=8"} <= set(job_options(two["checkpoints"]))
    assert "--nodes=1" in job_options(two["samples"])
    with pytest.raises(UserError, match="must fill whole nodes of 6 GPUs"):
        job_options(steps(*ON_GPUS, f"run_dir={tmp_path}", "cluster.gpus_per_node=6")["checkpoints"])


def test_a_base_model_is_made_beside_the_problems(tmp_path: Path) -> None:
    found = steps("experiment=demo", f"run_dir={tmp_path}/run", f"base.base_dir={tmp_path}/base")
    assert list(found)[:4] == ["base-tokenizer", "base-checkpoints", "base-export", "problems"]
    assert {name: step.after for name, step in found.items()} == {
        "base-tokenizer": (), "base-checkpoints": ("base-tokenizer",), "base-export": ("base-checkpoints",),
        "problems": (), "samples": ("problems", "base-export"), "dataset": ("samples",), "checkpoints": ("dataset",),
        "export": ("checkpoints",), "eval": ("export",), "report": ("eval",),
    }  # fmt: skip
    base = Path(found["base-export"].config.run_dir) / "export"
    assert f"model.path={base}" in found["samples"].overrides


def test_lm_eval_and_the_evaluation_do_not_wait_for_each_other(tmp_path: Path) -> None:
    found = steps(*ON_GPUS, f"run_dir={tmp_path}", "general_benchmarks.tasks=[gsm8k]")
    assert found["general_benchmarks"].after == ("export",)
    assert found["report"].after == ("eval", "general_benchmarks")


def test_stages_that_are_up_to_date_get_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps(*ON_GPUS, f"run_dir={tmp_path}", "general_benchmarks.tasks=[gsm8k]")
    done = {"problems", "samples", "dataset", "checkpoints", "export", "general_benchmarks"}
    monkeypatch.setattr(Step, "is_current", lambda step: step.name in done)
    assert [step.name for step in steps_to_run(list(found.values()))] == ["eval", "report"]
    done.remove("dataset")  # those after it wait for it, whether they are up to date or not
    assert [step.name for step in steps_to_run(list(found.values()))] == [
        "dataset", "checkpoints", "export", "eval", "general_benchmarks", "report",
    ]  # fmt: skip


def test_a_stage_without_a_folder_is_not_opened(tmp_path: Path) -> None:
    step = steps(*ON_GPUS, f"run_dir={tmp_path}")["samples"]

    def opened(config: RunConfig) -> Stage:
        raise AssertionError("the model would be downloaded")

    assert not dataclasses.replace(step, script=dataclasses.replace(step.script, open_stage=opened)).is_current()


def test_what_depends_on_the_gpu_asks_for_its_kind(tmp_path: Path) -> None:
    common = ("problems=rstar_coder", "benchmark=humaneval_plus", f"run_dir={tmp_path}", "cluster=gpu8")
    with pytest.raises(UserError, match=r"cluster.gpu = null: precision=auto .* or choose precision=bf16"):
        steps("model=qwen3_30b", *common)
    with pytest.raises(UserError, match=r"cluster.gpu = RTX: is not known; use one of L4, A100"):
        steps("model=qwen3_30b", *common, "cluster.gpu=RTX")
    steps("model=qwen3_30b", *common, "cluster.gpu=B200")


def test_the_printed_script_is_what_would_be_submitted(tmp_path: Path) -> None:
    found = steps("experiment=demo", f"run_dir='{tmp_path}/a=b, c'", "cluster.samples_nodes=2", until="samples")
    text = "\n".join(shell_script(list(found.values()), source=SHIPPED))
    program = tmp_path / "sbatch"
    program.write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" >{tmp_path}/$RANDOM$RANDOM.txt\necho 17\n")
    program.chmod(0o755)
    subprocess.run(["bash", "-c", f"PATH={tmp_path}:$PATH\n{text}"], check=True)
    seen = [path.read_text().splitlines() for path in tmp_path.glob("*.txt")]
    (sampling,) = [lines for lines in seen if "launch/generate.py" in lines]
    assert "--dependency=afterok:17:17" in sampling
    assert f"run_dir='{tmp_path}/a=b, c'" in sampling
    assert (tmp_path / "a=b, c" / "slurm").is_dir()


def test_the_jobs_of_a_run_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(steps(*ON_GPUS, f"run_dir={tmp_path}").values())
    numbers = iter(range(11, 20))
    monkeypatch.setattr(submit.slurm, "submit", lambda name, arguments, environment: str(next(numbers)))
    submit.submit_all(found, source=SHIPPED)
    records = [json.loads(line) for line in (tmp_path / "slurm" / "jobs.jsonl").read_text().splitlines()]
    assert records[:2] == [{"stage": "problems", "job": "11"}, {"stage": "samples", "job": "12"}]


def test_a_refused_job_takes_back_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, cancelled = list(steps(*ON_GPUS, f"run_dir={tmp_path}").values()), list[str]()

    def refuse(name: str, arguments: object, environment: object) -> str:
        if name == "dataset":
            raise UserError(f"the job of {name}", rule="sbatch failed", fix="change the keys of cluster")
        return f"1{len(name)}"

    monkeypatch.setattr(submit.slurm, "submit", refuse)
    monkeypatch.setattr(submit.slurm, "cancel", cancelled.extend)
    with pytest.raises(UserError, match="the job of dataset"):
        submit.submit_all(found, source=SHIPPED)
    assert cancelled == ["18", "17"]


def test_the_chosen_layout_is_logged_and_not_a_line_of_the_printed_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    found = steps("model=qwen3_4b", "problems=rstar_coder", "benchmark=humaneval_plus", "cluster=gpu8",
                  "cluster.gpu=H100", "precision=bf16", f"run_dir={tmp_path}")  # fmt: skip
    assert capsys.readouterr().out == ""
    assert "submit: training on TP" in caplog.text
    assert any(override.startswith("parallel.world_size=") for override in found["checkpoints"].overrides)
