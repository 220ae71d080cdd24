"""Worker of test_packing_layouts: records what the model computes for packed sequences in several layouts.

It also runs the packing self-test, and writes LAYOUT-RANK.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.dataset.packed_dataset import PackedDataset, PackedSequence
from megatron_ssd.errors import UserError
from megatron_ssd.runtime.local_attention import SegmentAttention
from megatron_ssd.runtime.packed_sequences import local_positions
from megatron_ssd.runtime.process_groups import megatron_grid
from megatron_ssd.training.data import segment_lengths
from megatron_ssd.training.self_test import check_packing, sample_losses
from megatron_ssd.training.trainer import Trainer, build_trainer
from tests.helpers.packing import one_segment
from tests.helpers.training_run import DEEP, DENSE, EXACT, MOE, training_config

WORLD_SIZES = (1, 2)
LAYOUTS: dict[int, dict[str, tuple[ModelConfig, dict[str, Any]]]] = {
    1: {"dense_one": (DENSE, {}), "moe_one": (MOE, {})},
    2: {
        "pp2": (DENSE, {"pipeline_model_parallel_size": 2}),
        "vpp2": (DEEP, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}),
        "cp2": (DENSE, {"context_parallel_size": 2}),
        "tp2_sp": (DENSE, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
        "dp2": (DENSE, {}),
        "moe_ep2": (MOE, {"expert_model_parallel_size": 2}),
        "moe_cp2": (MOE, {"context_parallel_size": 2}),
    },
}
THIRD = 2  # slot of the examined sample


def examine(root: Path, model: ModelConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """What this rank computes for the third sample of a packed sequence, for the test to compare."""
    config = training_config(
        root, model=model, parallel=parallel, training={"micro_batch_size": 2, "segment_multiple": 4}
    )
    trainer = build_trainer(config, root / "none", "cpu")
    dataset = trainer.source.dataset
    index = next(i for i in range(dataset.num_sequences(0)) if len(dataset.samples_in_sequence(0, i)) > THIRD)
    packed = dataset.sequence(0, index)
    alone = dataset.single_sample_sequence(0, index, THIRD, len(packed["tokens"]))
    changed = {**packed, "tokens": np.where(packed["segment_ids"] == THIRD + 1, packed["tokens"], 7)}
    queries_packed, queries_alone, queries_changed = third_queries(trainer, dataset, [packed, alone, changed], parallel)
    check_packing(trainer.state, trainer.source, EXACT)
    return {
        "layers": len(queries_packed),
        "tokens": sum(len(x) for x in queries_packed),
        "alone": max(float((a - b).abs().max()) for a, b in zip(queries_packed, queries_alone, strict=True)),
        "neighbours": max(float((a - b).abs().max()) for a, b in zip(queries_packed, queries_changed, strict=True)),
        "leak": message_with_a_leak(trainer),
    }


def third_queries(
    trainer: Trainer, dataset: PackedDataset, sequences: list[PackedSequence], parallel: ParallelConfig
) -> list[list[Tensor]]:
    """Rotated queries of the third sample, per sequence and layer of this rank.

    Each sequence is the second of two in its micro batch.
    """
    modules = [m for chunk in trainer.state.chunks for m in chunk.modules() if isinstance(m, SegmentAttention)]
    seen: dict[SegmentAttention, list[Tensor]] = {module: [] for module in modules}
    handles = [m.register_forward_pre_hook(lambda module, inputs: seen[module].append(inputs[0])) for m in modules]
    micro_batches = [[dataset.sequence(0, 0), each] for each in sequences]
    with torch.no_grad():
        shape = trainer.source.schedule_shape(trainer.source.plan(1)[0][0])
        sample_losses(trainer.state, trainer.source, micro_batches, shape=shape, num_samples=1)
    for handle in handles:
        handle.remove()
    cp_size = parallel.context_parallel_size
    cp_rank = trainer.source.context_parallel_rank
    queries = []
    for number, micro_batch in enumerate(micro_batches):
        ids = np.stack([each["segment_ids"] for each in micro_batch])
        here = local_positions(segment_lengths(ids), cp_size=cp_size, cp_rank=cp_rank)
        wanted = ids.copy()
        wanted[0] = 0
        where = torch.from_numpy(wanted.reshape(-1)[here] == (1 if number == 1 else THIRD + 1))
        queries.append([seen[module][number][where] for module in modules])
    return queries


def message_with_a_leak(trainer: Trainer) -> str:
    """The self-test's error message if all tokens of a micro batch are one segment; empty if it finds no error."""
    with one_segment():
        try:
            check_packing(trainer.state, trainer.source, EXACT)
        except UserError as error:
            return str(error)
    return ""


def run_cases(root: Path) -> None:
    """Run all layouts of this number of processes."""
    for name, (model, sizes) in LAYOUTS[dist.get_world_size()].items():
        layout = ParallelConfig(world_size=dist.get_world_size(), **sizes)
        with megatron_grid(layout, create_gloo_process_groups=True):
            facts = examine(root, model, layout)
        (root / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(facts))
