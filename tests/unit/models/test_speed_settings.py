"""Tests the settings that make training faster on GPUs: what reaches Megatron-Core, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch

from megatron_ssd.cli.compose import compose_config
from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.errors import ConfigError
from megatron_ssd.models.fused_gradients import fuse_gradient_accumulation
from megatron_ssd.models.transformer_config import transformer_config
from tests.helpers.kernel_names import define_kernels
from tests.helpers.training_run import DENSE, EXACT, MOE

ONE = ParallelConfig()
FUSED = PrecisionConfig()


def test_the_loss_is_fused_with_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    define_kernels(monkeypatch)
    config = transformer_config(DENSE, ONE, FUSED)
    assert (config.cross_entropy_loss_fusion, config.cross_entropy_fusion_impl) == (True, "te")
    unfused = dataclasses.replace(FUSED, cross_entropy_loss_fusion=False)
    assert not transformer_config(DENSE, ONE, unfused).cross_entropy_loss_fusion
    assert not transformer_config(DENSE, ONE, EXACT).cross_entropy_loss_fusion


@pytest.mark.parametrize("dispatcher", ["deepep", "hybridep"])
def test_kernels_for_experts_reach_megatron_core(
    dispatcher: Literal["deepep", "hybridep"], monkeypatch: pytest.MonkeyPatch
) -> None:
    define_kernels(monkeypatch)
    layout = ParallelConfig(world_size=2, expert_model_parallel_size=2)
    config = transformer_config(MOE, layout, FUSED, MoeConfig(dispatcher=dispatcher, router_fusion=True))
    assert (config.moe_token_dispatcher_type, config.moe_flex_dispatcher_backend) == ("flex", dispatcher)
    assert config.moe_router_fusion
    assert not transformer_config(MOE, layout, FUSED).moe_router_fusion


@pytest.mark.parametrize("kind", ["p2p", "a2a", "all_gather"])
def test_the_exchange_of_context_parallelism_reaches_megatron_core(
    kind: Literal["p2p", "a2a", "all_gather"], monkeypatch: pytest.MonkeyPatch
) -> None:
    define_kernels(monkeypatch)
    layout = ParallelConfig(world_size=2, context_parallel_size=2, cp_comm_type=kind)
    layout.check_model(DENSE)  # two key heads
    assert transformer_config(DENSE, layout, FUSED).cp_comm_type == kind


@pytest.mark.parametrize(
    ("context", "tensor"),
    [(4, 1), (2, 2)],
)
def test_heads_that_cannot_be_distributed_are_refused(context: int, tensor: int) -> None:
    layout = ParallelConfig(
        world_size=4, context_parallel_size=context, tensor_model_parallel_size=tensor, cp_comm_type="a2a"
    )
    with pytest.raises(ConfigError, match=r"cp_comm_type = a2a: .* must divide the key heads .*set parallel.cp_comm"):
        layout.check_model(DENSE)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parallel.cp_comm_type=a2a"], "is for TransformerEngine's attention"),
        (["moe.router_fusion=true"], "the kernel is TransformerEngine's"),
        (["precision.cross_entropy_loss_fusion=true"], "the kernel is TransformerEngine's"),
        (["precision.gradient_accumulation_fusion=true"], "needs CUDA kernels and cluster.device is cpu"),
    ],
)
def test_kernels_are_refused_on_a_cpu(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(["model=tiny_moe", "cluster=cpu", "precision=fp32", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parallel.cp_comm_type=all_gather"], "for unpacked sequences"),
        (["parallel=single", "moe.dispatcher=deepep"], "one rank has all experts"),
        (["moe.router_fusion=true", "moe.router_dtype=fp64"], "kernel takes fp32"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(["model=qwen3_30b", *overrides])


class Linear(torch.nn.Module):
    """A layer with the switch of TransformerEngine's, or of Megatron-Core's."""

    def __init__(self, switch: str) -> None:
        super().__init__()
        self.switch = switch
        setattr(self, switch, False)

    @property
    def is_on(self) -> bool:
        return bool(getattr(self, self.switch))


@pytest.mark.parametrize("has_apex_kernel", [False, True])
def test_gradients_are_accumulated_by_layers_that_have_a_kernel(has_apex_kernel: bool) -> None:
    fused, own, norm = Linear("fuse_wgrad_accumulation"), Linear("gradient_accumulation_fusion"), torch.nn.LayerNorm(4)
    fuse_gradient_accumulation([torch.nn.Sequential(fused, own, norm)], has_apex_kernel=has_apex_kernel)
    assert (fused.is_on, own.is_on) == (True, has_apex_kernel)


def test_gradients_are_accumulated_by_default_with_transformer_engine() -> None:
    assert FUSED.fuses_gradient_accumulation
    assert not EXACT.fuses_gradient_accumulation
    assert not dataclasses.replace(FUSED, gradient_accumulation_fusion=False).fuses_gradient_accumulation
