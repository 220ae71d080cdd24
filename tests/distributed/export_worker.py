"""Run by torchrun: load Hugging Face folders in several layouts, and leave what each rank holds, and a checkpoint.

torchrun --nproc-per-node=2 export_worker.py ROOT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from megatron_ssd.config.parallel import ClusterConfig, ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import load_hf_weights
from megatron_ssd.models.initialization import local_shards
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import joined_processes, megatron_grid
from tests.tiny_hf import MODELS

TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
EP2 = {"expert_model_parallel_size": 2}
LAYOUTS = {
    "tp2": ("llama", TP2),
    "tp2_tied": ("qwen3_tied", TP2),
    "pp2_tied": ("qwen3_tied", PP2),
    "pp2_vpp2": ("qwen3_tied", {**PP2, "virtual_pipeline_model_parallel_size": 2}),
    "ep2": ("qwen3_moe", EP2),
    "tp2_ep2": ("qwen3_moe", {**TP2, **EP2, "sequence_parallel": True}),
    "tp2_etp2": ("qwen3_moe", {**TP2, "expert_tensor_parallel_size": 2, "sequence_parallel": True}),
    "pp2_moe": ("qwen3_moe", PP2),
}
PRECISION = PrecisionConfig(params_dtype="fp32", transformer_engine=False)


def load_and_save(root: Path, layout: str) -> None:
    name, sizes = LAYOUTS[layout]
    parallel = ParallelConfig(world_size=2, **sizes)
    with megatron_grid(parallel, create_gloo_process_groups=True):
        chunks = build_model(MODELS[name], parallel, PRECISION, device="cpu", seed=None)
        load_hf_weights(chunks, MODELS[name], parallel, root / name)
        held = [
            (shard.key, shard.global_offset[: shard.prepend_axis_num], shard.global_offset[shard.prepend_axis_num :],
             shard.data.detach().clone())
            for chunk in chunks for shard in local_shards(chunk)
        ]  # fmt: skip
        torch.save(held, root / f"{layout}-{dist.get_rank()}.pt")
        (root / layout).mkdir(exist_ok=True)
        state = {f"model{number}": chunk.sharded_state_dict() for number, chunk in enumerate(chunks)}
        dist_checkpointing.save(state, str(root / layout))


if __name__ == "__main__":
    with joined_processes(prepare_device(ClusterConfig(device="cpu"))):
        for each in LAYOUTS:
            load_and_save(Path(sys.argv[1]), each)
