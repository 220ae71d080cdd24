"""Worker of test_export_layouts: loads Hugging Face folders in several layouts.

It writes these files to ROOT for each layout: ``LAYOUT-RANK.pt`` with the rank's parameters and the number of bytes
that it read, ``LAYOUT.npy`` with the logits of ROOT/tokens.npy, ``LAYOUT/iter_0000003`` with a checkpoint, and
``LAYOUT.json`` with the loss and whether the logits are the same after the weights were loaded from ROOT/NAME-megatron.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.tools import ConvertConfig
from megatron_ssd.export.convert import run_convert
from megatron_ssd.models.build import build_model
from megatron_ssd.models.hf_checkpoint import load_hf_weights
from megatron_ssd.models.initialization import local_shards
from megatron_ssd.runtime.process_groups import megatron_grid
from tests.helpers.tiny_hf import MODELS, save_reference_logits, write_hf_folder

TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
EP2 = {"expert_model_parallel_size": 2}
LAYOUTS = {
    "tp2": ("llama_scaled", TP2),
    "tp2_odd": ("qwen3_odd", TP2),
    "tp2_odd_tied": ("qwen3_odd_tied", TP2),
    "pp2": ("llama_scaled", PP2),
    "pp2_tied": ("qwen3_tied", PP2),
    "pp2_vpp2": ("qwen3_tied", {**PP2, "virtual_pipeline_model_parallel_size": 2}),
    "ep2": ("qwen3_moe", EP2),
    "tp2_ep2": ("qwen3_moe", {**TP2, **EP2, "sequence_parallel": True}),
    "tp2_etp2": ("qwen3_moe", {**TP2, "expert_tensor_parallel_size": 2, "sequence_parallel": True}),
    "pp2_moe": ("qwen3_moe", PP2),
    "tp2_qwen2": ("qwen2_drawn", TP2),
    "pp2_qwen2": ("qwen2_tied_drawn", PP2),
    "tp2_mistral": ("mistral_drawn", TP2),
    "pp2_mistral": ("mistral_drawn", PP2),
}
PRECISION = PrecisionConfig(params_dtype="fp32", transformer_engine=False)
NAMES = sorted({name for name, _ in LAYOUTS.values()})
TOKENS_BS = torch.randint(63, (2, 128), generator=torch.Generator().manual_seed(0))
WORLD_SIZES = (2,)


def prepare(root: Path) -> None:
    """Write each model's Hugging Face folder, its conversion to Megatron-Core, and transformers' logits of it."""
    for name in NAMES:
        write_hf_folder(root / name, MODELS[name], max_shard_size="20KB")
        run_convert(
            ConvertConfig(direction="hf_to_megatron", hf=str(root / name), megatron=str(root / f"{name}-megatron"))
        )
    save_reference_logits(root, NAMES, TOKENS_BS)


def run_cases(root: Path) -> None:
    """Run all layouts."""
    tokens_BS = torch.from_numpy(np.load(root / "tokens.npy"))
    for layout in LAYOUTS:
        run_layout(root, layout, tokens_BS)


def run_layout(root: Path, layout: str, tokens_BS: Tensor) -> None:
    name, sizes = LAYOUTS[layout]
    model, parallel = MODELS[name], ParallelConfig(world_size=2, **sizes)
    with megatron_grid(parallel, create_gloo_process_groups=True):
        chunks = build_model(model, parallel, PRECISION, device="cpu", seed=None)
        bytes_read = load_hf_weights(chunks, model, parallel, root / name)
        held = [
            (shard.key, shard.global_offset[: shard.prepend_axis_num], shard.global_offset[shard.prepend_axis_num :],
             shard.data.detach().clone())
            for chunk in chunks for shard in local_shards(chunk)
        ]  # fmt: skip
        torch.save((held, bytes_read), root / f"{layout}-{dist.get_rank()}.pt")
        (root / layout / "iter_0000003").mkdir(parents=True, exist_ok=True)
        state = {f"model{number}": chunk.sharded_state_dict() for number, chunk in enumerate(chunks)}
        dist_checkpointing.save(state, str(root / layout / "iter_0000003"))
        logits_BSV = full_logits(chunks, model.vocab_size, tokens_BS)
        loss = summed_loss(chunks, tokens_BS)
        reloaded_BSV = None
        if (root / f"{name}-megatron").is_dir():
            load_converted(chunks, root / f"{name}-megatron" / "iter_0000000")
            reloaded_BSV = full_logits(chunks, model.vocab_size, tokens_BS)
        if logits_BSV is not None:
            np.save(root / f"{layout}.npy", logits_BSV)
            same = None if reloaded_BSV is None else bool(np.array_equal(reloaded_BSV, logits_BSV))
            (root / f"{layout}.json").write_text(json.dumps({"loss": loss, "same_when_converted": same}))


def load_converted(chunks: list[GPTModel], path: Path) -> None:
    """Load a checkpoint with Megatron-Core, after setting all parameters to NaN."""
    with torch.no_grad():
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.fill_(torch.nan)
    state = {f"model{number}": chunk.sharded_state_dict() for number, chunk in enumerate(chunks)}
    loaded = dist_checkpointing.load(state, str(path))
    for number, chunk in enumerate(chunks):
        chunk.load_state_dict(loaded[f"model{number}"])


def full_logits(chunks: list[GPTModel], vocab_size: int, tokens_BS: Tensor) -> np.ndarray | None:
    """Logits [B, S, V], with the vocabulary gathered, on the first rank of the last pipeline stage."""
    outputs = forward(chunks, tokens_BS, labels_BS=None)
    if not outputs:
        return None
    (part_BSV,) = outputs
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(part_BSV) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part_BSV.contiguous(), group=group)
    first = parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_data_parallel_rank() == 0
    return torch.cat(parts, dim=-1)[..., :vocab_size].numpy() if first else None


def summed_loss(chunks: list[GPTModel], tokens_BS: Tensor) -> float | None:
    """Cross-entropy of each token given those before it, summed; None except on the last pipeline stage."""
    outputs = forward(chunks, tokens_BS, labels_BS=tokens_BS.roll(-1, dims=1))
    return outputs[0].double().sum().item() if outputs else None


def forward(chunks: list[GPTModel], tokens_BS: Tensor, labels_BS: Tensor | None) -> list[Tensor]:
    """Run Megatron-Core's schedule and return the outputs of the last pipeline stage; empty on the other stages."""

    def step(batches: Iterator[None], chunk: GPTModel) -> tuple[Tensor, Callable[..., Tensor]]:
        positions_BS = torch.arange(tokens_BS.shape[1]).expand_as(tokens_BS)
        output = chunk(tokens_BS, positions_BS, None, labels=labels_BS)
        return output, lambda output, non_loss_data=True: output

    with torch.no_grad():
        for chunk in chunks:
            chunk.eval()
        outputs: list[Tensor] = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=[None] * len(chunks) if len(chunks) > 1 else None,
            model=chunks,
            # Interleaved stages need as many micro batches as there are stages.
            num_microbatches=2 if len(chunks) > 1 else 1,
            seq_length=tokens_BS.shape[1],
            micro_batch_size=tokens_BS.shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
    return outputs[:1]
