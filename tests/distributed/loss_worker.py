"""Run by torchrun: train the same models on the same rows under several layouts, and leave the curves.

torchrun --nproc-per-node=2 -m tests.distributed.loss_worker ROOT
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import joined_processes, megatron_grid
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.training_run import CPU, DENSE, EXACT, MOE, training_config

ITERATIONS = 4
MODELS = {"dense": DENSE, "untied": dataclasses.replace(DENSE, tie_word_embeddings=False), "moe": MOE}
# Samples in packed rows start at multiples of 4 everywhere, as context parallelism over two ranks needs it.
DATA: dict[str, dict[str, Any]] = {
    "packed": {"training": {"packing": "greedy", "segment_multiple": 4}},
    "unpacked": {"training": {"packing": "none"}},
    "sequence": {"training": {"packing": "best_fit", "segment_multiple": 4, "loss_normalization": "sequence"}},
    "aux": {"training": {"packing": "greedy", "segment_multiple": 4}, "moe": MoeConfig(aux_loss_coeff=0.1)},
}

TP2 = {"tensor_model_parallel_size": 2, "use_distributed_optimizer": False}
SP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
PP4 = {"pipeline_model_parallel_size": 4}
VPP2 = {**PP2, "virtual_pipeline_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}
EP2 = {"expert_model_parallel_size": 2}
ETP2 = {"expert_tensor_parallel_size": 2}
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"one": {}},
    2: {
        "tp2": TP2,
        "tp2_sp": SP2,
        "pp2": PP2,
        "vpp2": VPP2,
        "cp2": CP2,
        "dp2": {"use_distributed_optimizer": False},
        "dp2_distributed_optimizer": {},
        "ep2": EP2,
        "tp2_ep2": {**SP2, **EP2},
        "tp2_etp2": {**SP2, **ETP2},
        "cp2_ep2": {**CP2, **EP2},
    },
    4: {
        "tp2_pp2": {**SP2, **PP2},
        "pp4": PP4,
        "cp2_tp2": {**CP2, **SP2},
        "cp2_pp2": {**CP2, **PP2},
        "cp2_dp2": CP2,
        "tp2_dp2": SP2,
        "ep2_pp2": {**EP2, **PP2},
        "tp2_ep2_etp2": {**SP2, **EP2, **ETP2},
    },
}
_DENSE = ["tp2", "tp2_sp", "pp2", "vpp2", "cp2", "dp2", "dp2_distributed_optimizer",
          "tp2_pp2", "pp4", "cp2_tp2", "cp2_pp2", "cp2_dp2", "tp2_dp2"]  # fmt: skip
_EXPERTS = ["ep2", "tp2_ep2", "tp2_etp2", "cp2", "cp2_ep2", "ep2_pp2", "tp2_ep2_etp2", "dp2_distributed_optimizer"]
# (model, data) -> layouts; "one" is what they are compared with.
CASES: dict[tuple[str, str], list[str]] = {
    ("dense", "packed"): ["one", *_DENSE],
    ("dense", "unpacked"): ["one", *_DENSE],
    ("dense", "sequence"): ["one", "dp2_distributed_optimizer", "cp2", "tp2_pp2"],
    ("untied", "packed"): ["one", "pp4"],
    ("moe", "packed"): ["one", *_EXPERTS],
    ("moe", "unpacked"): ["one", *_EXPERTS],
    ("moe", "aux"): ["one", "ep2", "cp2", "tp2_ep2", "ep2_pp2"],
}


def train(root: Path, model: str, data: str, layout: str) -> None:
    world_size = dist.get_world_size()
    parallel = ParallelConfig(world_size=world_size, **LAYOUTS[world_size][layout])
    config = training_config(root, model=MODELS[model], parallel=parallel, **DATA[data])
    with megatron_grid(parallel, create_gloo_process_groups=True):
        trainer = build_trainer(config, root / "none", "cpu")
        curve = [trainer.step() for _ in range(ITERATIONS)]
    if dist.get_rank() == 0:
        rows = [{"loss": m.loss, "grad_norm": m.grad_norm, "valid_tokens": m.valid_tokens} for m in curve]
        (root / f"{model}-{data}-{layout}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    with joined_processes(prepare_device(CPU, EXACT)):
        for (each_model, each_data), layouts in CASES.items():
            for each_layout in layouts:
                if each_layout in LAYOUTS[int(os.environ["WORLD_SIZE"])]:
                    train(Path(sys.argv[1]), each_model, each_data, each_layout)
