"""Worker of test_moe: trains a small mixture of experts with several settings.

It writes the measurements as CASE.json.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.models.routers import routers
from megatron_ssd.runtime.process_groups import megatron_grid
from megatron_ssd.training.meter import ExpertLoadCounter
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.training_run import EXACT, MOE, training_config

EP2 = {"expert_model_parallel_size": 2}
PP2_EP1 = {"pipeline_model_parallel_size": 2}
SP2_EP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True, **EP2}
AUX = MoeConfig(aux_loss_coeff=2.0)
WORLD_SIZES = (1, 2)
CASES: dict[int, dict[str, tuple[dict[str, Any], MoeConfig, dict[str, Any]]]] = {
    1: {
        "plain": ({}, MoeConfig(), {}),
        "aux": ({}, AUX, {}),
        "aux_sequence": ({}, AUX, {"loss_normalization": "sequence"}),
        "aux_unpacked": ({}, AUX, {"packing": "none"}),
        "frozen": ({}, MoeConfig(freeze_router=True), {}),
        "full_recompute": ({}, MoeConfig(), {"recompute": "full"}),
        "router_fp64": ({}, MoeConfig(router_dtype="fp64"), {}),
    },
    2: {
        "alltoall_ep2": (EP2, MoeConfig(), {}),
        "allgather_ep2": (EP2, MoeConfig(dispatcher="allgather"), {}),
        "aux_ep2": (EP2, AUX, {}),
        "aux_tp2_ep2": (SP2_EP2, AUX, {}),
        "aux_cp2_ep2": ({"context_parallel_size": 2, **EP2}, AUX, {"packing": "none"}),
        "frozen_ep2": (EP2, MoeConfig(freeze_router=True), {}),
        "pp2": (PP2_EP1, MoeConfig(), {}),
    },
}
ITERATIONS = 2


def train(root: Path, name: str) -> None:
    """Train two iterations; write loss, gradient norm and tokens per expert of each, and how far routers moved."""
    world_size = dist.get_world_size()
    sizes, moe, changes = CASES[world_size][name]
    parallel = ParallelConfig(world_size=world_size, **sizes)
    precision = dataclasses.replace(EXACT, recompute=changes.get("recompute", "none"))
    training = {key: value for key, value in changes.items() if key != "recompute"}
    config = training_config(root, model=MOE, parallel=parallel, precision=precision, moe=moe, training=training)
    with megatron_grid(parallel, create_gloo_process_groups=True):
        trainer = build_trainer(config, root / "none", "cpu")
        assert MOE.num_experts is not None
        counter = ExpertLoadCounter(trainer.state.chunks, num_layers=MOE.num_hidden_layers, num_experts=MOE.num_experts)
        before = {router.layer_number: router.weight.detach().clone() for router in routers(trainer.state.chunks)}
        curve = []
        for iteration in range(1, ITERATIONS + 1):
            counter.start()
            metrics = trainer.step()
            tokens = int(trainer.source.sample_lengths(iteration).sum())
            measured = {"loss": metrics.loss, "grad_norm": metrics.grad_norm, "sample_tokens": tokens}
            curve.append({**measured, "counts": counter.counts().tolist()})
        after = {router.layer_number: router.weight.detach() for router in routers(trainer.state.chunks)}
    moved = [float((after[layer] - before[layer]).abs().max()) for layer in after]
    if dist.get_rank() == 0:
        (root / f"{name}.json").write_text(json.dumps({"iterations": curve, "moved": moved}))


def run_cases(root: Path) -> None:
    """Run all cases of this number of processes."""
    for name in CASES[dist.get_world_size()]:
        train(root, name)
