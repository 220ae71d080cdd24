"""Tests the planner's text, and that every recipe fits its GPUs."""

import sys
from pathlib import Path

import pytest

from megatron_ssd.cli import plan
from megatron_ssd.cli.compose import CONFIG_DIR, RENAMED_FILES, compose_config
from megatron_ssd.cli.plan import DOCUMENT, RECIPES, recipe, tables, with_tables
from megatron_ssd.config.run import needed
from megatron_ssd.errors import ConfigError
from megatron_ssd.planner.memory import GB, worst_rank
from megatron_ssd.planner.plan import Samples, run_text
from megatron_ssd.runtime.hardware import check_precision
from tests.helpers.training_run import write_dataset

LONGEST = {"64k": 65_536, "32k": 32_768, "8k": 8192}


@pytest.mark.parametrize("name", RECIPES)
def test_every_rank_of_a_recipe_fits_into_the_memory_of_its_gpu(name: str) -> None:
    planned = recipe(name)
    config, layout, gpu = planned.config, planned.layout, planned.gpu
    assert config.training.seq_length == LONGEST[name.rpartition("_")[2]]
    assert config.training.global_batch_size == 32
    assert config.training.packs_steps
    assert [rank.rank for rank in layout.ranks] == list(range(config.parallel.world_size))
    assert layout.num_parameters == needed(config.model, "model").num_parameters()
    assert worst_rank(config, layout).total <= gpu.memory_gb * GB
    check_precision(config.precision, gpu.capability, (13, 0))
    optimizer = config.optimizer
    assert not optimizer.precision_aware or config.parallel.use_distributed_optimizer
    assert not optimizer.cpu_offload_fraction or optimizer.precision_aware


def test_the_tables_in_the_documentation_are_up_to_date() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(document, tables()) == document, "run: python tools/plan.py --table --write"


def test_every_experiment_for_gpus_is_a_recipe_with_a_description() -> None:
    for path in (CONFIG_DIR / "experiment").glob("*_*k.yaml"):
        assert path.stem in RECIPES
        assert "never run" in path.read_text(encoding="utf-8").replace("\n# ", " ")
    assert compose_config(["model=qwen3_30b"]).parallel == recipe("b200_64k").config.parallel


@pytest.mark.parametrize("old", RENAMED_FILES)
def test_the_old_name_of_a_file_gives_the_new_one(old: str) -> None:
    new = RENAMED_FILES[old]
    with pytest.raises(ConfigError, match=f"did you mean {new}"):
        compose_config([old])
    compose_config(new.split() if "experiment" in new else ["model=qwen3_30b", new])


def run_plan(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    plan.main()


def test_the_plan_of_a_model_without_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_plan(monkeypatch, "model=tiny_moe", "parallel=single", "--gpu=B200", "--samples=1000")
    out = capsys.readouterr().out
    for part in ("weights", "gradients", "optimizer", "activations", "logits", "full", "B200 (180 GB): fits",
                 "epochs: 80.00 (1,000 samples", "hours: "):  # fmt: skip
        assert part in out, out
    assert "A100" not in out


def test_the_plan_reads_an_existing_data_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_dataset(tmp_path)
    run_plan(monkeypatch, "model=tiny", "parallel=single", f"run_dir={tmp_path}", "objective=pretrain",
             "training.packing=best_fit", "training.train_iters=300")  # fmt: skip
    assert "200 samples in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layouts=8"], "--gpu=B200"),
        (["--gpu=A100", "--layouts=0"], "0 is not an integer above 0"),
        (["--write"], "add --table"),
        (["--mean-tokens=100"], "add --samples"),
        (["--samples=10", "--mean-tokens=100000"], "more than training.seq_length"),
        (["--samples=10", "training.packing=greedy", "training.batch_unit=packed_sequences"], "--mean-tokens"),
        (["--gpu=A100", "precision=fp8_tensorwise"], "needs compute capability 8.9"),
        (["--gpu=H200", "experiment=b200_64k"], "needs compute capability 10.0"),
        (["--disk=0"], "rate in GB/s"),
        (["--samples=-5"], "-5 is not an integer above 0"),
        (["--gpu=H100", "--layouts=7", "model=qwen3_30b"], "no layout of this model"),
    ],
)
def test_invalid_arguments_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_plan(monkeypatch, "model=tiny", "parallel=single", *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_ranking_lists_layouts_that_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_plan(monkeypatch, "model=llama31_8b", "--gpu=H100", "--layouts=8")
    head, *lines = capsys.readouterr().out.splitlines()
    assert "layouts fit 8 x H100" in head
    assert lines
    *layouts, first = lines
    assert all(float(line.split(" GB")[0].split()[-1]) <= 80 for line in layouts)
    overrides = first.removeprefix("for the first one: ").split()
    run_plan(monkeypatch, "model=llama31_8b", "--gpu=H100", *overrides)
    assert "H100 (80 GB): fits" in capsys.readouterr().out


def test_a_run_that_does_not_fit_has_no_hours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_plan(monkeypatch, "model=llama31_8b", "--gpu=H100")
    out = capsys.readouterr().out
    assert "does not fit" in out
    assert "hours: none" in out


def test_epochs_count_full_sequences_and_short_samples_alike() -> None:
    config = compose_config(["model=qwen3_30b"])
    assert "epochs: 800.00" in run_text(config, Samples(sequences=100, described="", segment_length=None))
    assert "epochs: 800.00" in run_text(config, Samples(sequences=100, described="", segment_length=4096))
