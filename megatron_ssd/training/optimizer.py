"""Wraps Megatron-Core's AdamW with its learning-rate schedule."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.training import OptimizerConfig
from megatron_ssd.errors import require
from megatron_ssd.training.optimizer_state import allocate_state, pytorch_adams

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.uint8}


def check_optimizer(config: OptimizerConfig, parallel: ParallelConfig, *, device: str) -> None:
    """Refuse what this machine or layout cannot run, before anything is built.

    Raises:
        ConfigError: lower precision without TransformerEngine's FusedAdam or without the distributed optimizer, or
            offloading without a CUDA device.
    """
    fused_adam = device == "cuda" and importlib.util.find_spec("transformer_engine") is not None
    require(
        not config.precision_aware or fused_adam,
        "optimizer.precision_aware = true",
        rule="needs TransformerEngine's FusedAdam, which needs a CUDA device and is not available here",
        fix="set optimizer.precision_aware=false with the *_dtype keys at fp32, or train with TransformerEngine",
    )
    require(
        not config.precision_aware or parallel.use_distributed_optimizer,
        "optimizer.precision_aware = true",
        rule="needs parallel.use_distributed_optimizer = true",
        fix="set parallel.use_distributed_optimizer=true",
    )
    require(
        config.cpu_offload_fraction == 0 or device == "cuda",
        f"optimizer.cpu_offload_fraction = {config.cpu_offload_fraction}",
        rule="moves optimizer state from a CUDA device to host memory, and cluster.device is cpu",
        fix="set optimizer.cpu_offload_fraction=0",
    )
    require(
        config.cpu_offload_fraction == 0 or config.precision_aware,
        f"optimizer.cpu_offload_fraction = {config.cpu_offload_fraction}",
        rule="needs optimizer.precision_aware = true in Megatron-Core",
        fix="set optimizer.precision_aware=true; the *_dtype keys may stay at fp32",
    )


def wrap_chunks(
    chunks: Sequence[GPTModel], config: OptimizerConfig, parallel: ParallelConfig, *, device: str
) -> list[DistributedDataParallel]:
    """Give each chunk its gradient buffers, which are reduced over data-parallel replicas in ``main_grads_dtype``."""
    # On CUDA, communication overlaps with the backward pass; gloo has no second stream for that.
    overlap = device == "cuda" and parallel.data_parallel_size * parallel.context_parallel_size > 1
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=config.main_grads_dtype == "fp32",
        overlap_grad_reduce=overlap,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
    )
    return [
        DistributedDataParallel(config=chunk.config, ddp_config=settings, module=chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]


def build_optimizer(
    chunks: Sequence[DistributedDataParallel], config: OptimizerConfig, parallel: ParallelConfig
) -> MegatronOptimizer:
    """Megatron-Core's optimizer over ``chunks``, registered in their configuration for the schedules.

    Norm weights (every vector) have no weight decay, as in Megatron-LM. Frozen parameters are not updated.
    """
    model_config = chunks[0].config
    optimizer = get_megatron_optimizer(megatron_config(config, parallel, model_config), list(chunks))
    # Megatron-Core does not request one kernel for all parameters; Adams of other packages always have it.
    for adam in pytorch_adams(optimizer):
        for group in adam.param_groups:
            group["fused"], group["foreach"] = True, False
    allocate_state(optimizer)
    # No grad_scale_func: nothing here scales the loss, and the model would keep the optimizer through it, and with it
    # every process group and its threads, alive until the process ends.
    if chunks[0].ddp_config.overlap_grad_reduce:
        model_config.no_sync_func = [chunk.no_sync for chunk in chunks] if len(chunks) > 1 else chunks[0].no_sync
    return optimizer


def megatron_config(
    config: OptimizerConfig, parallel: ParallelConfig, model_config: TransformerConfig
) -> MegatronOptimizerConfig:
    """``config`` in Megatron-Core's form, for the parameters of a model that was built with ``model_config``."""
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.min_lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_eps=config.adam_eps,
        clip_grad=config.clip_grad,
        bf16=model_config.bf16,
        params_dtype=model_config.params_dtype,
        fp8_recipe=None,  # weights are bf16, also under FP8; a recipe would keep full fp32 copies of them
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        use_precision_aware_optimizer=config.precision_aware,
        main_params_dtype=_DTYPES[config.main_params_dtype],
        main_grads_dtype=_DTYPES[config.main_grads_dtype],
        exp_avg_dtype=_DTYPES[config.exp_avg_dtype],
        exp_avg_sq_dtype=_DTYPES[config.exp_avg_sq_dtype],
        optimizer_cpu_offload=config.cpu_offload_fraction > 0,
        optimizer_offload_fraction=config.cpu_offload_fraction,
        overlap_cpu_optimizer_d2h_h2d=config.cpu_offload_fraction > 0,
    )


def global_grad_norm(optimizer: MegatronOptimizer) -> float:
    """Prepare gradients for a step and return their L2 norm over the full model, the same on every rank."""
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm() or 0.0)


def clip_and_step(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clip prepared gradients to the norm ``clip_grad`` and update the weights.

    ``MegatronOptimizer.step`` does the same, but does not let the caller check the norm before the update.
    """
    for inner in optimizer.chained_optimizers:
        if not inner.is_stub_optimizer:
            clip_grad_by_total_norm_fp32(
                inner.get_parameters(),
                max_norm=inner.config.clip_grad,
                total_norm=grad_norm,
                use_decoupled_grad=inner.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
            )
    optimizer.step_with_ready_grads()


def normalize_gradients(chunks: Sequence[DistributedDataParallel], normalizer: float) -> None:
    """Make the next backward pass end with gradients summed over ranks and divided by ``normalizer``.

    Megatron-Core would divide by an integer number of tokens; weights per sample or for prompts make it a fraction.
    """
    chunks[0].config.finalize_model_grads_func = functools.partial(_finalize_gradients, normalizer=normalizer)


def _finalize_gradients(
    chunks: Sequence[DistributedDataParallel], num_tokens: torch.Tensor | None, *, normalizer: float, **groups: Any
) -> None:
    """Megatron-Core's hook at the end of a schedule; its count of tokens is not used."""
    finalize_model_grads(list(chunks), None, **groups)
    for chunk in chunks:
        chunk.scale_gradients(1.0 / normalizer)


def build_schedule(
    optimizer: MegatronOptimizer, config: OptimizerConfig, *, train_iters: int, done: int
) -> OptimizerParamScheduler:
    """Learning rate by iteration: linear to ``lr`` over the warm-up, then cosine to ``min_lr`` at ``train_iters``.

    Call ``step(1)`` before each optimizer step, so that iteration i runs at the rate of i and the first one does not
    run at zero.

    Args:
        done: iterations before a resume. The rate depends on this count alone.
    """
    schedule = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=config.lr_warmup_iters,
        lr_decay_steps=train_iters,
        lr_decay_style="cosine",
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=train_iters,
        wd_incr_style="constant",
    )
    schedule.step(increment=done)
    return schedule
