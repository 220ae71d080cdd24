"""Tests the auxiliary loss and the statistics of expert load, also that padding counts in neither of them."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from torch import Tensor

from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.training import OptimizerConfig
from megatron_ssd.dataset import packed_dataset
from megatron_ssd.models.layer_specs import with_own_router
from megatron_ssd.models.routers import Router, routers
from megatron_ssd.models.transformer_config import transformer_config
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.meter import ExpertLoadCounter, expert_load
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import CPU, EXACT, MOE, training_config, write_dataset

ONE = ParallelConfig()
NUM_EXPERTS = MOE.num_experts or 0
NO_CLIPPING = OptimizerConfig(lr=1e-3, min_lr=1e-4, lr_warmup_iters=2, clip_grad=1e9)
pytestmark = without_gpu


class Measured(NamedTuple):
    """What iteration 1 measures, with the gradients of the last layer's routing weights."""

    gradient: Tensor
    of_auxiliary_loss: Tensor  # computed from the router's inputs
    counts: list[list[int]]
    loss: float


def measure(root: Path, coefficient: float, **training: Any) -> Measured:
    """Run iteration 1.

    The auxiliary loss is experts x sum of (share of assignments x mean probability) over the tokens that are not
    padding, averaged over micro batches.
    """
    inputs: list[Tensor] = []
    moe = MoeConfig(aux_loss_coeff=coefficient)
    model = dataclasses.replace(MOE, max_position_embeddings=512)
    config = training_config(root, model=model, moe=moe, optimizer=NO_CLIPPING, training=training)
    with process_groups(ONE, device=prepare_device(CPU)):
        trainer = build_trainer(config, root / "none", "cpu")
        counter = ExpertLoadCounter(trainer.state.chunks, num_layers=MOE.num_hidden_layers, num_experts=NUM_EXPERTS)
        router = list(routers(trainer.state.chunks))[-1]
        router.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()[~args[1]]))
        weight = router.weight.detach().clone().requires_grad_()
        counter.start()
        loss = trainer.step().loss
        gradient, counts = router.weight.main_grad.clone(), counter.counts()
        assert counts.sum(1).tolist() == [trainer.source.sample_lengths(1).sum() * router.topk] * MOE.num_hidden_layers
    for hidden_TH in inputs:
        probabilities_TE = torch.softmax(hidden_TH @ weight.T, dim=-1)
        chosen = torch.topk(probabilities_TE, router.topk, dim=-1).indices
        share_E = torch.bincount(chosen.flatten(), minlength=weight.shape[0]) / chosen.numel()
        auxiliary = weight.shape[0] * (share_E * probabilities_TE.mean(0)).sum()
        (auxiliary / len(inputs)).backward()
    assert weight.grad is not None
    return Measured(gradient, weight.grad, counts.tolist(), loss)


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_the_auxiliary_loss_has_its_coefficient_under_either_normalization(tmp_path: Path, normalization: str) -> None:
    write_dataset(tmp_path)
    with_loss = measure(tmp_path, 0.5, loss_normalization=normalization)
    without = measure(tmp_path, 0.0, loss_normalization=normalization)
    difference = with_loss.gradient - without.gradient
    torch.testing.assert_close(difference, 0.5 * with_loss.of_auxiliary_loss, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("packing", ["none", "greedy"])
def test_padding_changes_neither_loss_nor_gradient_nor_expert_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    write_dataset(tmp_path, num_documents=2)
    size = {"none": 2, "greedy": 1}[packing]  # the iteration holds both samples
    sizes = {"packing": packing, "global_batch_size": size, "micro_batch_size": size}
    short = measure(tmp_path, 0.5, seq_length=96, **sizes)
    monkeypatch.setattr(packed_dataset, "_PAD_ID", 37)
    long = measure(tmp_path, 0.5, seq_length=512, **sizes)
    torch.testing.assert_close(long.gradient, short.gradient, rtol=1e-4, atol=1e-7)
    assert long.counts == short.counts
    assert long.loss == pytest.approx(short.loss, rel=1e-6)


def test_layers_of_megatron_core_get_the_router_of_this_project() -> None:
    config = transformer_config(MOE, ONE, EXACT, MoeConfig())
    with process_groups(ONE, device=prepare_device(CPU)):
        block = with_own_router(get_gpt_decoder_block_spec(config, use_transformer_engine=False))
    for layer in block.layer_specs:
        mlp = layer.submodules.mlp
        assert (mlp.submodules if hasattr(mlp, "submodules") else mlp.keywords["submodules"]).router is Router


def test_expert_load_equals_a_hand_computation() -> None:
    assert expert_load(torch.tensor([[4, 4, 4, 4], [0, 2, 12, 2]])) == {
        "expert_load_max": 3.0, "expert_load_max_layer": 1,
        "expert_load_min": 0.0, "expert_load_min_layer": 1, "experts_unused": 1,
    }  # fmt: skip
