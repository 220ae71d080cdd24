"""AdamW with warm-up and cosine decay, on Megatron-Core's optimizers and gradient buffers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.training import OptimizerConfig


def wrap_chunks(chunks: Sequence[GPTModel], parallel: ParallelConfig) -> list[DistributedDataParallel]:
    """Give each chunk its gradient buffers, summed over the data-parallel replicas in fp32."""
    # With CUDA, communication hides behind the backward pass; gloo has no second stream to hide on.
    overlap = torch.cuda.is_available() and parallel.data_parallel_size > 1
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
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
    """Megatron-Core's optimizer over ``chunks``, hooked into their configuration for the schedules.

    Weight decay leaves out norm weights (every vector), as Megatron-LM does.
    """
    model_config = chunks[0].config
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
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
            use_distributed_optimizer=parallel.use_distributed_optimizer,
        ),
        list(chunks),
    )
    _use_fused_kernels(optimizer)
    model_config.grad_scale_func = optimizer.scale_loss
    if chunks[0].ddp_config.overlap_grad_reduce:
        model_config.no_sync_func = [chunk.no_sync for chunk in chunks] if len(chunks) > 1 else chunks[0].no_sync
    return optimizer


def normalize_gradients(chunks: Sequence[DistributedDataParallel], normalizer: float) -> None:
    """Have the next backward pass end with gradients summed over ranks and divided by ``normalizer``.

    Megatron-Core would divide by a whole number of tokens; weights per sample or for prompts make it a fraction.
    """
    chunks[0].config.finalize_model_grads_func = functools.partial(_finalize_gradients, normalizer=normalizer)


def _finalize_gradients(
    chunks: Sequence[DistributedDataParallel], num_tokens: torch.Tensor | None, *, normalizer: float, **groups: Any
) -> None:
    """Megatron-Core's hook at the end of a schedule, called with its count of tokens, which is not used."""
    finalize_model_grads(list(chunks), None, **groups)
    for chunk in chunks:
        chunk.scale_gradients(1.0 / normalizer)


def _use_fused_kernels(optimizer: MegatronOptimizer) -> None:
    """PyTorch's AdamW updates all parameters in one kernel where it is asked to; Megatron-Core does not ask.

    TransformerEngine's and apex's Adam, which Megatron-Core prefers where they are installed, are fused anyway.
    """
    for inner in optimizer.chained_optimizers:
        if isinstance(inner.optimizer, torch.optim.AdamW):
            for group in inner.optimizer.param_groups:
                group["fused"], group["foreach"] = True, False


def build_schedule(
    optimizer: MegatronOptimizer, config: OptimizerConfig, *, train_iters: int, done: int
) -> OptimizerParamScheduler:
    """Learning rate by iteration: linear to ``lr`` over the warm-up, then cosine to ``min_lr`` at ``train_iters``.

    Call ``step(1)`` before each optimizer step, so that iteration i runs at the rate of i and the first is not wasted
    at zero.

    Args:
        done: iterations before a resume. The rate depends on the count alone.
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
