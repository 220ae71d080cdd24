"""Tests the coefficient of the auxiliary loss, and the statistics of expert load."""

from pathlib import Path

import torch

from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.training import OptimizerConfig
from megatron_ssd.models.routers import routers
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.meter import expert_load
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.devices import without_gpu
from tests.helpers.training_run import CPU, MOE, training_config, write_dataset

ONE = ParallelConfig()
NO_CLIPPING = OptimizerConfig(lr=1e-3, min_lr=1e-4, lr_warmup_iters=2, clip_grad=1e9)
pytestmark = without_gpu


def last_router(root: Path, coefficient: float, normalization: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two gradients of the last layer's routing weights in iteration 1: of the total loss and of the auxiliary loss.

    The second is computed from the router's inputs: experts x sum of (share of assignments x mean probability),
    averaged over micro batches.
    """
    inputs: list[torch.Tensor] = []
    config = training_config(
        root, model=MOE, moe=MoeConfig(aux_loss_coeff=coefficient), optimizer=NO_CLIPPING,
        training={"loss_normalization": normalization},
    )  # fmt: skip
    with process_groups(ONE, device=prepare_device(CPU)):
        trainer = build_trainer(config, root / "none", "cpu")
        router = list(routers(trainer.state.chunks))[-1]
        router.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().flatten(0, 1)))
        weight = router.weight.detach().clone().requires_grad_()
        trainer.step()
        gradient = router.weight.main_grad.clone()
    for hidden_TH in inputs:
        probabilities_TE = torch.softmax(hidden_TH @ weight.T, dim=-1)
        chosen = torch.topk(probabilities_TE, router.topk, dim=-1).indices
        share_E = torch.bincount(chosen.flatten(), minlength=weight.shape[0]) / chosen.numel()
        loss = weight.shape[0] * (share_E * probabilities_TE.mean(0)).sum()
        (loss / len(inputs)).backward()
    assert weight.grad is not None
    return gradient, weight.grad


def test_the_auxiliary_loss_has_its_coefficient_under_either_normalization(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    for normalization in ("token", "sequence"):
        with_loss, alone = last_router(tmp_path, 0.5, normalization)
        without, _ = last_router(tmp_path, 0.0, normalization)
        torch.testing.assert_close(with_loss - without, 0.5 * alone, rtol=1e-3, atol=1e-8)


def test_expert_load_equals_a_hand_computation() -> None:
    assert expert_load(torch.tensor([[4, 4, 4, 4], [0, 2, 12, 2]])) == {
        "expert_load_max": 3.0, "expert_load_max_layer": 1,
        "expert_load_min": 0.0, "expert_load_min_layer": 1, "experts_unused": 1,
    }  # fmt: skip
