"""Worker of test_memory: trains one step in several layouts, and measures the memory that is then allocated.

It writes the bytes of weights, gradients and optimizer state as CASE-RANK.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.runtime.process_groups import megatron_grid
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.training_run import DENSE, EXACT, MOE, training_config

BF16 = dataclasses.replace(EXACT, params_dtype="bf16")
NON_DISTRIBUTED = {"use_distributed_optimizer": False}
FROZEN = MoeConfig(freeze_router=True)
WORLD_SIZES = (1, 2)
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "fp32": {"model": DENSE, "parallel": {}},
        "bf16": {"model": DENSE, "parallel": {}, "precision": BF16},
        "bf16_non_distributed": {"model": DENSE, "parallel": NON_DISTRIBUTED, "precision": BF16},
        "moe_bf16": {"model": MOE, "parallel": {}, "precision": BF16},
        "moe_frozen": {"model": MOE, "parallel": {}, "moe": FROZEN},
    },
    2: {
        "dp2": {"model": DENSE, "parallel": {}},
        "dp2_bf16": {"model": DENSE, "parallel": {}, "precision": BF16},
        "dp2_non_distributed": {"model": DENSE, "parallel": NON_DISTRIBUTED},
        "tp2": {"model": DENSE, "parallel": {"tensor_model_parallel_size": 2}},
        "pp2": {"model": DENSE, "parallel": {"pipeline_model_parallel_size": 2}, "precision": BF16},
        "moe_ep2": {"model": MOE, "parallel": {"expert_model_parallel_size": 2}, "precision": BF16},
    },
}


def case_config(world_size: int, name: str, root: Path) -> RunConfig:
    """The configuration of a case."""
    changes = dict(CASES[world_size][name])
    return training_config(root, **changes | {"parallel": ParallelConfig(world_size=world_size, **changes["parallel"])})


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory of ``tensors`` in bytes, in which each storage counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def measure(trainer: Any) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state on this rank after a step."""
    buffers = [buffer for chunk in trainer.state.chunks for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)]
    parameters = [parameter.data for chunk in trainer.state.chunks for parameter in chunk.parameters()]
    inner = [optimizer.optimizer for optimizer in trainer.state.optimizer.chained_optimizers]
    main = [parameter.data for adam in inner for group in adam.param_groups for parameter in group["params"]]
    moments = [
        value for adam in inner for state in adam.state.values() for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 1
    ]  # fmt: skip
    model_storages = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    own = [tensor for tensor in main if tensor.untyped_storage().data_ptr() not in model_storages]
    return {
        "weights": held_bytes(parameters),
        "gradients": held_bytes(buffer.grad_data for buffer in buffers),
        "optimizer": held_bytes([*own, *moments]),
    }


def run_cases(root: Path) -> None:
    """Run all cases of this number of processes."""
    size = dist.get_world_size()
    for case in CASES[size]:
        config = case_config(size, case, root)
        with megatron_grid(config.parallel, create_gloo_process_groups=True):
            trainer = build_trainer(config, root / "none", "cpu")
            trainer.step()
            (root / f"{case}-{dist.get_rank()}.json").write_text(json.dumps(measure(trainer)))
