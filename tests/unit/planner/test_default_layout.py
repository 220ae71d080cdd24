"""Tests the layout that is chosen where the user gives none."""

from __future__ import annotations

import pytest

from megatron_ssd.cli.compose import compose_config
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.planner.default_layout import choose_layout, ranked_layouts
from megatron_ssd.planner.dry_run import lay_out
from megatron_ssd.planner.layout import count_layout
from tests.helpers.tiny_hf import MODELS

H100, H200 = 85e9, 150e9


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("qwen2_drawn", {"tensor_model_parallel_size": 2}),
        ("qwen2_tied_drawn", {"pipeline_model_parallel_size": 2}),
        ("qwen3_odd_tied", {"tensor_model_parallel_size": 2}),
        ("qwen3_moe", {"expert_model_parallel_size": 2}),
        ("qwen3_moe", {"tensor_model_parallel_size": 2, "expert_tensor_parallel_size": 2, "sequence_parallel": True}),
    ],
)
def test_the_counted_parameters_are_those_that_megatron_builds(name: str, sizes: dict[str, int]) -> None:
    parallel = ParallelConfig(world_size=2, **sizes)
    built = {rank.pipeline_rank: rank for rank in reversed(lay_out(MODELS[name], parallel).ranks)}
    for counted in count_layout(MODELS[name], parallel).ranks:
        rank = built[counted.pipeline_rank]
        assert counted.num_parameters == rank.num_parameters
        assert counted.num_expert_parameters == rank.num_expert_parameters
        assert counted.num_product_weights == rank.num_product_weights


def sizes(parallel: ParallelConfig) -> tuple[int, int, int, int, int]:
    return (parallel.world_size, parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size,
            parallel.context_parallel_size, parallel.expert_model_parallel_size)  # fmt: skip


def test_a_small_model_is_not_split_and_a_large_one_is() -> None:
    small = choose_layout(compose_config(["model=smollm2_135m"]), num_gpus=8, gpu_bytes=H100)
    assert sizes(small.config.parallel) == (8, 1, 1, 1, 1)
    large = choose_layout(compose_config(["model=qwen3_32b"]), num_gpus=8, gpu_bytes=H200)
    assert sizes(large.config.parallel)[1:] != (1, 1, 1, 1)
    assert large.memory <= H200
    experts = choose_layout(compose_config(["model=qwen3_30b", "parallel=single"]), num_gpus=8, gpu_bytes=180e9)
    assert experts.config.parallel.expert_model_parallel_size > 1


def test_short_sequences_share_a_micro_batch_and_a_given_size_stays() -> None:
    config = compose_config(["model=smollm2_135m", "training.seq_length=1024"])
    choice = choose_layout(config, num_gpus=2, gpu_bytes=H100)
    assert choice.config.training.micro_batch_size > 1
    assert config.training.global_batch_size % (2 * choice.config.training.micro_batch_size) == 0
    fixed = choose_layout(config, num_gpus=2, gpu_bytes=H100, keep_micro_batch=True)
    assert fixed.config.training.micro_batch_size == 1


def test_gpus_that_do_not_divide_the_work_stay_idle() -> None:
    for packing, world_size in {"none": 4, "best_fit": 6}.items():
        config = compose_config(["model=smollm2_135m", f"training.packing={packing}"])
        assert choose_layout(config, num_gpus=6, gpu_bytes=H100).config.parallel.world_size == world_size


def test_recomputation_is_used_only_where_nothing_fits_without_it() -> None:
    choices = [
        choose_layout(compose_config([f"model={name}"]), num_gpus=8, gpu_bytes=H200)
        for name in ("smollm2_135m", "qwen3_32b")
    ]
    assert [choice.config.precision.recompute != "none" for choice in choices] == [False, True]
    asked = compose_config(["model=smollm2_135m", "precision.recompute=full"])
    assert choose_layout(asked, num_gpus=8, gpu_bytes=H100).config.precision.recompute == "full"


def test_a_model_that_fits_nowhere_gets_the_layout_that_needs_the_least() -> None:
    choice = choose_layout(compose_config(["model=qwen3_32b"]), num_gpus=1, gpu_bytes=H100)
    assert choice.memory > H100


def test_the_overrides_give_the_chosen_layout() -> None:
    choice = choose_layout(compose_config(["model=qwen3_32b"]), num_gpus=8, gpu_bytes=H100)
    assert compose_config(["model=qwen3_32b", *choice.overrides]) == choice.config


def test_ranked_layouts_fit_and_the_first_is_the_one_that_is_chosen() -> None:
    config = compose_config(["model=qwen3_30b", "precision=bf16"])
    ranked = ranked_layouts(config, num_gpus=16, gpu_bytes=80e9)
    assert all(choice.memory <= 80e9 for choice in ranked)
    assert len({choice.config.parallel for choice in ranked}) == len(ranked)
    assert any(choice.config.parallel.expert_model_parallel_size == 16 for choice in ranked)
    chosen = choose_layout(config, num_gpus=16, gpu_bytes=80e9, keep_micro_batch=True)
    assert ranked[0].config == chosen.config
