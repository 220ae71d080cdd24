"""Worker of test_loss_curves: trains the same models on the same data in several layouts.

It writes the curves as MODEL-DATA-LAYOUT.json.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_ssd.config.model import MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.runtime.process_groups import megatron_grid
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.tiny_hf import drawn_model
from tests.helpers.training_run import DEEP, DENSE, MOE, VOCAB_SIZE, training_config

ITERATIONS = 2
DRAWN = {name: drawn_model(name, name, vocab_size=VOCAB_SIZE, num_hidden_layers=2) for name in ("qwen2", "mistral")}
MODELS = {
    "dense": DENSE,
    "deep": DEEP,
    "untied": dataclasses.replace(DEEP, tie_word_embeddings=False),
    "moe": MOE,
    **DRAWN,
}
# Packed samples start at multiples of 4 in all layouts, as context parallelism over two ranks requires.
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
WORLD_SIZES = (1, 2, 4)
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
        "tp2_etp2_pp2": {**SP2, **ETP2, **PP2},
    },
}
_DENSE = ["tp2", "tp2_sp", "pp2", "cp2", "dp2", "dp2_distributed_optimizer",
          "tp2_pp2", "cp2_tp2", "cp2_pp2", "cp2_dp2", "tp2_dp2"]  # fmt: skip
_EXPERTS = ["ep2", "tp2_ep2", "tp2_etp2", "cp2", "cp2_ep2", "ep2_pp2", "tp2_ep2_etp2", "dp2_distributed_optimizer"]
# Every layout trains on packed samples; unpacked ones need each kind of parallelism once.
_DENSE_UNPACKED = ["tp2_sp", "cp2", "dp2", "tp2_pp2"]
_EXPERTS_UNPACKED = ["ep2", "tp2_etp2", "cp2"]
# (model, data) -> layouts; they are compared with "one".
CASES: dict[tuple[str, str], list[str]] = {
    ("dense", "packed"): ["one", *_DENSE],
    ("dense", "unpacked"): ["one", *_DENSE_UNPACKED],
    ("dense", "sequence"): ["one", "dp2_distributed_optimizer", "cp2", "tp2_pp2"],
    ("deep", "packed"): ["one", "vpp2", "pp4"],
    ("deep", "unpacked"): ["one", "vpp2"],
    ("untied", "packed"): ["one", "pp4"],
    ("qwen2", "packed"): ["one", "tp2_sp", "pp2", "cp2", "tp2_pp2"],
    ("mistral", "packed"): ["one", "tp2", "cp2_pp2"],
    ("moe", "packed"): ["one", *_EXPERTS],
    ("moe", "unpacked"): ["one", *_EXPERTS_UNPACKED],
    ("moe", "aux"): ["one", "ep2", "cp2", "tp2_ep2", "ep2_pp2", "tp2_etp2_pp2"],
}


def run_cases(root: Path) -> None:
    """Run all cases of this number of processes; those of one layout share its process groups."""
    world_size = dist.get_world_size()
    for layout, sizes in LAYOUTS[world_size].items():
        parallel = ParallelConfig(world_size=world_size, **sizes)
        with megatron_grid(parallel, create_gloo_process_groups=True):
            for (model, data), layouts in CASES.items():
                if layout in layouts:
                    config = training_config(root, model=MODELS[model], parallel=parallel, **DATA[data])
                    train(config, root / f"{model}-{data}-{layout}.json")


def train(config: RunConfig, path: Path) -> None:
    trainer = build_trainer(config, path.with_suffix(".none"), "cpu")
    curve = [trainer.step() for _ in range(ITERATIONS)]
    if dist.get_rank() == 0:
        records = [{"loss": m.loss, "grad_norm": m.grad_norm, "valid_tokens": m.valid_tokens} for m in curve]
        path.write_text(json.dumps(records))
