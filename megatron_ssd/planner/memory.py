"""Memory of one GPU, part by part, before anything runs. Pure, given how many parameters a rank holds.

Parameters are counted from what the dry run builds. The rest is formulas:

=============  =========================================================================================================
weights        parameters x 2 bytes (bf16) or 4 (fp32)
FP8 weights    of every product in FP8 layers, beside the bf16 ones: one copy along rows and one along columns, kept
               from micro batch to micro batch, 1 byte each, with scales
gradients      parameters x 4 bytes, or 2 with optimizer.main_grads_dtype=bf16: whole on every rank
optimizer      fp32 copy (bf16 training) and two moments, 12 bytes a parameter, over the data-parallel ranks with the
               distributed optimizer: of experts over the ranks that hold the same experts. precision_aware narrows
               each; beside bf16 weights it keeps the lower 16 bits of an fp32 copy
EMA            parameters x 4 bytes
activations    what layers keep (``planner.activations``) x micro batches in flight on the pipeline stage
working set    what the widest layer needs at once in the backward pass, exchange of tokens included
logits         on the last stage, in bf16 and as the fp32 softmax: 6 bytes x vocabulary / tensor size, and the last
               norm's input and output
reserve        CUDA context, NCCL, cuBLAS and TransformerEngine workspaces, allocator: an assumption, see below
=============  =========================================================================================================

``IMBALANCE`` is assumed of the experts' load. The sum is an estimate: on a GPU it has not been held against a run yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import Fp8Config
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.config.training import OptimizerConfig
from megatron_ssd.planner.activations import kept_bytes, layer_tensors, working_bytes
from megatron_ssd.planner.dry_run import LayoutReport, RankReport

GB = 1e9  # as data sheets count
RESERVE = 5 * GB  # of which about 1 is the CUDA context, 1 to 2 NCCL's buffers; the rest for what the allocator wastes
IMBALANCE = 1.2  # tokens of the busiest rank's experts over the mean

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on one rank, by part."""

    weights: float
    fp8_weights: float
    gradients: float
    optimizer: float
    ema: float
    activations: float
    working_set: float
    logits: float
    reserve: float = RESERVE

    @property
    def state(self) -> float:
        """What is there between iterations."""
        return self.weights + self.fp8_weights + self.gradients + self.optimizer + self.ema

    @property
    def total(self) -> float:
        """The peak of an iteration."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


def worst_rank(config: RunConfig, layout: LayoutReport) -> RankMemory:
    """The memory of the rank that needs most."""
    return max(all_ranks(config, layout), key=lambda memory: memory.total)


def all_ranks(config: RunConfig, layout: LayoutReport) -> Iterable[RankMemory]:
    """The memory of every rank of ``layout``, which was made with this configuration."""
    model = needed(config.model, "model", fix="choose one with model=NAME")
    return [_rank_memory(config, model, rank) for rank in layout.ranks]


def _rank_memory(config: RunConfig, model: ModelConfig, rank: RankReport) -> RankMemory:
    parallel, precision, optimizer = config.parallel, config.precision, config.optimizer
    positions = config.training.micro_batch_size * config.training.seq_length // parallel.context_parallel_size
    tensors = layer_tensors(model, parallel, precision, config.moe)
    kept = kept_bytes(tensors, precision, imbalance=IMBALANCE)
    working = working_bytes(model, parallel, precision, config.moe, imbalance=IMBALANCE)
    layers = layers_in_flight(
        model, parallel, stage=rank.pipeline_rank,
        num_microbatches=config.training.num_microbatches(parallel.data_parallel_size),
    )  # fmt: skip
    is_last = rank.pipeline_rank == parallel.pipeline_model_parallel_size - 1
    trained = rank.num_parameters - rank.num_frozen_parameters
    return RankMemory(
        weights=rank.num_parameters * _BYTES[precision.params_dtype],
        fp8_weights=rank.num_fp8_weights * _fp8_weight_bytes(precision.fp8),
        gradients=trained * _BYTES[optimizer.main_grads_dtype],
        optimizer=optimizer_bytes(rank, parallel, optimizer, params_dtype=precision.params_dtype),
        ema=0.0 if config.training.ema_decay is None else rank.num_parameters * 4.0,
        activations=positions * kept * layers,
        working_set=positions * working,
        logits=positions * _logit_bytes(model, config) if is_last else 0.0,
    )


def optimizer_bytes(
    rank: RankReport, parallel: ParallelConfig, optimizer: OptimizerConfig, *, params_dtype: str
) -> float:
    """Bytes of this rank's optimizer state on the device."""
    dense_ranks = expert_ranks = 1
    if parallel.use_distributed_optimizer:
        dense_ranks = parallel.data_parallel_size * parallel.context_parallel_size
        expert_ranks = parallel.world_size // (
            parallel.expert_model_parallel_size
            * parallel.expert_tensor_parallel_size
            * parallel.pipeline_model_parallel_size
        )
    experts = rank.num_expert_parameters
    dense = rank.num_parameters - rank.num_frozen_parameters - experts
    share = dense / dense_ranks + experts / expert_ranks
    return share * _state_bytes(optimizer, params_dtype) * (1 - optimizer.cpu_offload_fraction)


def _state_bytes(optimizer: OptimizerConfig, params_dtype: str) -> int:
    """Of one parameter."""
    moments = _BYTES[optimizer.exp_avg_dtype] + _BYTES[optimizer.exp_avg_sq_dtype]
    if params_dtype == "fp32":
        return moments  # the parameter is its own copy
    remainder_only = optimizer.precision_aware and optimizer.main_params_dtype == "fp32"
    return moments + (2 if remainder_only else _BYTES[optimizer.main_params_dtype])


def _fp8_weight_bytes(fp8: Fp8Config | None) -> float:
    if fp8 is None:
        return 0.0
    # A scale for 32 values (one byte) in MXFP8, for a block of 128 x 128 (fp32) in blockwise, else for the tensor.
    scale = {"mxfp8": 1 / 32, "blockwise": 4 / 128**2}.get(fp8.recipe, 0.0)
    return 2 * (1 + scale)


def layers_in_flight(model: ModelConfig, parallel: ParallelConfig, *, stage: int, num_microbatches: int) -> int:
    """Layers x micro batches that pipeline stage ``stage`` holds for the backward pass at most.

    1F1B: stage r of p starts p - r micro batches before its first backward pass. Interleaved over v virtual stages:
    2 (p - r - 1) + (v - 1) p + 1 chunks (Megatron-Core's ``get_pp_rank_microbatches``).
    """
    p, v = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if v is None:
        return min(p - stage, num_microbatches) * model.num_hidden_layers // p
    chunks = 2 * (p - stage - 1) + (v - 1) * p + 1
    return min(chunks, num_microbatches * v) * model.num_hidden_layers // (p * v)


def _logit_bytes(model: ModelConfig, config: RunConfig) -> float:
    """For one position: logits, their fp32 softmax, and what the last norm and the output layer keep."""
    value = _BYTES[config.precision.params_dtype]
    tp = config.parallel.tensor_model_parallel_size
    sp = tp if config.parallel.sequence_parallel else 1
    softmax = value + 4 if value < 4 else 4
    return model.vocab_size / tp * softmax + 2 * model.hidden_size * value / sp
