"""Tests the planner's text, and that every recipe fits its GPUs."""

import sys
from pathlib import Path

import pytest

from megatron_ssd.cli import plan
from megatron_ssd.cli.compose import CONFIG_DIR, compose_config
from megatron_ssd.cli.plan import DOCUMENT, RECIPES, recipe_layout, table, with_table
from megatron_ssd.planner.gpus import GPUS
from megatron_ssd.planner.memory import worst_rank
from megatron_ssd.planner.plan import Samples, fits, hours, iteration_flops, run_text
from megatron_ssd.runtime.hardware import check_precision
from tests.helpers.training_run import write_dataset


@pytest.mark.parametrize("name", RECIPES)
def test_every_rank_of_a_recipe_fits_into_the_memory_of_its_gpu(name: str) -> None:
    config, layout = recipe_layout(name)
    assert config.model is not None
    assert config.training.seq_length == 65536
    assert config.training.global_batch_size == 32
    assert [rank.rank for rank in layout.ranks] == list(range(config.parallel.world_size))
    assert layout.num_parameters == config.model.num_parameters() == 30_532_122_624
    assert fits(worst_rank(config, layout), RECIPES[name])
    check_precision(config.precision, GPUS[RECIPES[name]].capability, (13, 0))


def test_the_table_in_the_documentation_is_up_to_date() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert with_table(document, table()) == document, "run: python tools/plan.py --table --write"


def test_every_recipe_is_an_experiment_with_a_description() -> None:
    for name in RECIPES:
        text = (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
        assert "never run" in text
    default = compose_config(["model=qwen3_30b"])
    assert default.parallel == recipe_layout("b200_mxfp8")[0].parallel


def run_plan(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    plan.main()


def test_the_plan_of_a_model_without_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_plan(monkeypatch, "model=tiny_moe", "parallel=single", "--gpu=B200", "--mfu=0.5", "--samples=1000")
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
        (["--mfu=0.3"], "--gpu=B200"),
        (["--gpu=A100", "--mfu=3"], "share of the peak"),
        (["--samples=10", "training.packing=greedy", "training.batch_unit=packed_sequences"], "--mean-tokens"),
        (["--gpu=A100", "--mfu=0.3", "precision=fp8_tensorwise"], "no FP8 units"),
    ],
)
def test_invalid_arguments_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_plan(monkeypatch, "model=tiny", "parallel=single", *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_hours_equal_a_hand_computation() -> None:
    config = compose_config(["model=qwen3_30b"])
    assert config.model is not None
    full_sequences = Samples(sequences=100, described="", segment_length=None)
    flops = iteration_flops(config.model, config.training, full_sequences)
    seconds = 2500 * flops / (0.25 * 2250e12 * 8)
    assert hours(config, full_sequences, GPUS["B200"], 0.25) == pytest.approx(seconds / 3600)
    short = Samples(sequences=100, described="", segment_length=4096)
    assert iteration_flops(config.model, config.training, short) < flops / 2, "short segments attend to less"
    assert "epochs: 800.00" in run_text(config, full_sequences)
