"""Tests that every rank of every shipped layout builds without a GPU."""

import dataclasses

import pytest
from megatron.core.extensions.transformer_engine import HAVE_TE

from launch.train import train
from megatron_ssd.cli.compose import CONFIG_DIR, compose_config, groups
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.planner.dry_run import lay_out, run_dry
from tests.helpers.training_run import DEEP, DENSE, MOE


def has_layout(model: str) -> bool:
    """Whether the model's YAML selects a layout or is small; the other files differ from these in numbers only."""
    text = (CONFIG_DIR / "model" / f"{model}.yaml").read_text()
    return "/parallel:" in text or model.startswith("tiny")


@pytest.mark.parametrize("name", [*(name for name in groups()["model"] if has_layout(name)), "qwen25_coder_0.5b"])
def test_every_rank_of_a_shipped_model_builds_and_the_total_is_exact(name: str) -> None:
    config = compose_config([f"model={name}"])
    assert config.model is not None
    shape = dataclasses.replace(config.model, name="any", path=None, revision=None)
    report = lay_out(shape, config.parallel)  # built once for models that differ only in their weights
    assert [rank.rank for rank in report.ranks] == list(range(config.parallel.world_size))
    assert report.num_parameters == config.model.num_parameters()


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (DENSE, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "context_parallel_size": 2}),
        (DEEP, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}),
        (MOE, {"expert_model_parallel_size": 4, "pipeline_model_parallel_size": 2}),
        (MOE, {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_tensor_parallel_size": 2}),
    ],
    ids=["tp2_pp2_cp2", "pp2_vpp2", "ep4_pp2", "tp2_etp2"],
)
def test_replicated_shards_count_once(model, sizes) -> None:  # type: ignore[no-untyped-def]
    report = lay_out(model, ParallelConfig(world_size=8, **sizes))
    assert report.num_parameters == model.num_parameters()
    assert sum(rank.num_parameters for rank in report.ranks) > report.num_parameters


def test_a_dry_run_prints_a_line_per_rank(capsys: pytest.CaptureFixture[str]) -> None:
    train(compose_config(["model=tiny", "dry_run=true", "parallel=tp2_dp4"]))
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.strip()[:1].isdigit()]) == 8
    assert ("TransformerEngine's, which cannot be imported" in out) != HAVE_TE
    assert "4 replicas" in out


def test_the_table_shows_the_context_parallel_rank(capsys: pytest.CaptureFixture[str]) -> None:
    train(compose_config(["model=tiny", "dry_run=true", "parallel=cp8"]))
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:11]]
    assert head == ["rank", "tensor", "pipeline", "context", "expert", "data", "parameters"]
    assert [row[head.index("context")] for row in rows] == list("01234567")


def test_a_dry_run_needs_a_model() -> None:
    with pytest.raises(ValueError, match="model=NAME"):
        run_dry(compose_config(["dry_run=true"]))
