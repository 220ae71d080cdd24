"""Run by torchrun: train the same model on the same rows under several layouts, and leave the curves.

torchrun --nproc-per-node=2 -m tests.distributed.loss_worker ROOT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import joined_processes, megatron_grid
from megatron_ssd.training.stage import prepare_trainer
from tests.training_run import CPU, DENSE, EXACT, MOE, training_config

TP2 = {"tensor_model_parallel_size": 2, "use_distributed_optimizer": False}
SP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
EP2 = {"expert_model_parallel_size": 2}
LAYOUTS: dict[int, dict[str, tuple[Any, dict[str, Any]]]] = {
    1: {"dense": (DENSE, {}), "moe": (MOE, {})},
    2: {
        "tp2": (DENSE, TP2),
        "tp2_sp": (DENSE, SP2),
        "pp2": (DENSE, PP2),
        "pp2_vpp2": (DENSE, {**PP2, "virtual_pipeline_model_parallel_size": 2}),
        "dp2": (DENSE, {}),
        "dp2_whole_optimizer": (DENSE, {"use_distributed_optimizer": False}),
        "moe_ep2": (MOE, EP2),
        "moe_tp2_ep2": (MOE, {**SP2, **EP2}),
        "moe_tp2_etp2": (MOE, {**SP2, "expert_tensor_parallel_size": 2}),
    },
    4: {
        "tp2_pp2": (DENSE, {**SP2, **PP2}),
        "moe_pp2_ep2": (MOE, {**PP2, **EP2}),
        "tp2_dp2": (DENSE, SP2),
    },
}
ITERATIONS = 10


def train(root: Path, name: str) -> None:
    world_size = dist.get_world_size()
    model, sizes = LAYOUTS[world_size][name]
    parallel = ParallelConfig(world_size=world_size, **sizes)
    with megatron_grid(parallel, create_gloo_process_groups=True):
        trainer, _ = prepare_trainer(training_config(root, model=model, parallel=parallel), root / "none", "cpu")
        curve = [trainer.step() for _ in range(ITERATIONS)]
    if dist.get_rank() == 0:
        rows = [{"loss": m.loss, "grad_norm": m.grad_norm, "valid_tokens": m.valid_tokens} for m in curve]
        (root / f"{name}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    with joined_processes(prepare_device(CPU, EXACT)):
        for each in LAYOUTS[int(os.environ["WORLD_SIZE"])]:
            train(Path(sys.argv[1]), each)
