"""Runs one training step: one update of the weights from a global batch.

The loss is cross-entropy, weighted by token and summed. Sums, not means, leave a micro batch. Loss and gradients are
divided once, by the weight of the global batch (``BatchSource.normalizer``), so that no split into micro batches,
replicas or packed sequences changes the weight of a token or a sample.

Whether to update is decided from numbers that are the same on every rank, the loss of the global batch and the norm of
the full gradient, so that all ranks skip a step or none does. A skipped step leaves the weights, their EMA and the
optimizer state unchanged; it still consumes its batch and its learning-rate step.

Shape suffixes: B micro batch, S sequence.
"""

from __future__ import annotations

import functools
import math
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from megatron_ssd.config.cluster import Device
from megatron_ssd.config.model import MoeConfig
from megatron_ssd.errors import UserError
from megatron_ssd.models.routers import router_padding_mask, set_aux_loss_coefficient
from megatron_ssd.runtime.transfer import to_device
from megatron_ssd.training.data import Batch, BatchSource, MicroBatchPlan
from megatron_ssd.training.optimizer import clip_and_step, global_grad_norm, normalize_gradients
from megatron_ssd.training.profiling import phase
from megatron_ssd.training.shutdown import GracefulShutdown

EMA_PREFIX = "ema"
_WINDOW = 50  # losses that the running mean covers, roughly
_MIN_LOSSES = 5  # before a spike can be detected

LossOutput = tuple[Tensor, Tensor, Tensor]


@dataclass
class LossSpikeDetector:
    """Detects non-finite losses and loss spikes.

    The same losses give the same counters on every rank; the counters are part of a checkpoint. ``seen`` counts finite
    losses, which is the number of updates. ``mean`` is the mean of the first losses, and after that their exponential
    moving average.
    """

    spike_factor: float
    max_skipped: int
    skipped_in_row: int = 0
    seen: int = 0
    mean: float = 0.0

    def update(self, loss: float) -> bool:
        """Count a finite loss; returns whether it is above ``spike_factor`` times the running mean."""
        assert math.isfinite(loss)
        spike = self.seen >= _MIN_LOSSES and loss > self.spike_factor * self.mean
        self.skipped_in_row = 0
        self.seen += 1
        self.mean += (loss - self.mean) / min(self.seen, _WINDOW)
        return spike

    def skip(self) -> None:
        """Count an iteration without update."""
        self.skipped_in_row += 1

    def check(self, iteration: int) -> None:
        """Raise ``UserError`` if the last ``max_skipped`` iterations were all skipped."""
        if self.skipped_in_row >= self.max_skipped:
            raise UserError(
                f"training.max_skipped = {self.max_skipped}",
                rule=f"loss and gradient must be finite, and were not for {self.skipped_in_row} iterations up to "
                f"{iteration}; the weights of iteration {iteration - self.skipped_in_row} cannot recover",
                fix="lower optimizer.lr or raise optimizer.lr_warmup_iters, and start again",
            )

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return {"skipped_in_row": self.skipped_in_row, "seen": self.seen, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved counters."""
        self.skipped_in_row, self.seen, self.mean = state["skipped_in_row"], state["seen"], state["mean"]


class EmaWeights:
    """An exponential moving average (EMA) of the parameters of ``modules``, which starts as a copy of them.

    After the n-th applied update, ema(n) = decay x ema(n - 1) + (1 - decay) x weights(n), with ema(0) the weights that
    training started from. It is in fp32, which takes 4 bytes per parameter of this rank. A checkpoint stores it under
    the parameters' keys with the prefix ``ema.``, so that it is resharded and exported like them.

    Args:
        modules: this rank's model chunks.
        decay: in (0, 1).

    Attributes:
        averages: one per parameter, in the order of ``modules``.
    """

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self._decay = decay
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        # Not ``float()``, which returns fp32 parameters themselves.
        self.averages = [parameter.detach().to(torch.float32, copy=True) for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights."""
        for average, parameter in zip(self.averages, self._parameters, strict=True):
            average.lerp_(parameter.float(), 1.0 - self._decay)

    def sharded_state_dict(self, model_state: dict[str, Any]) -> dict[int, Any]:
        """The average as Megatron-Core's sharded tensors.

        Args:
            model_state: the sharded state of the same modules, which gives shapes and offsets.
        """
        index = {parameter: number for number, parameter in enumerate(self._parameters)}
        shards = {
            index[shard.data]: make_sharded_optimizer_tensor(shard, self.averages[index[shard.data]], EMA_PREFIX)
            for shard in nested_values(model_state)
            if isinstance(getattr(shard, "data", None), nn.Parameter)
        }
        return dict(sorted(shards.items()))

    def load(self, loaded: dict[int, Tensor]) -> None:
        """Restore what ``sharded_state_dict`` saved."""
        for number, average in loaded.items():
            self.averages[number].copy_(average)


@dataclass
class TrainingState:
    """Everything that a step changes on this rank, and so everything that a checkpoint holds.

    ``iteration`` counts finished iterations; data order and learning rate follow from it.
    """

    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    spikes: LossSpikeDetector
    ema: EmaWeights | None = None
    iteration: int = 0

    @property
    def models(self) -> list[GPTModel]:
        """The unwrapped models, whose parameter names are those of the checkpoint."""
        return [chunk.module for chunk in self.chunks]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of a step, the same on every rank."""

    loss: float  # weighted mean over the global batch, before the update; may not be finite
    grad_norm: float  # L2 over the full model, before clipping
    learning_rate: float
    valid_tokens: int  # tokens with a non-zero loss weight
    skipped: bool  # loss or gradient was not finite, and nothing was updated
    spike: bool  # see training.spike_factor
    peak_memory_gib: float  # the largest of any process: device memory on a GPU, resident set size on a CPU


def run_step(
    state: TrainingState,
    schedule: OptimizerParamScheduler,
    source: BatchSource,
    *,
    moe: MoeConfig,
    shutdown: GracefulShutdown | None = None,
    before_update: Callable[[], None] = lambda: None,
) -> StepResult:
    """Run the iteration after ``state.iteration`` and count it.

    Args:
        shutdown: learns what any rank was asked for before the update.
        before_update: called when gradients are computed, before anything in ``state`` changes.
    """
    iteration = state.iteration + 1
    for chunk in state.chunks:
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()
    normalizer, plans = source.normalizer(iteration), source.plan(iteration)
    normalize_gradients(state.chunks, normalizer)
    set_aux_loss_coefficient(state.chunks, moe.aux_loss_coeff * normalizer / sum(map(len, plans)))
    total = run_micro_batches(state, source, plans, forward_only=False)
    before_update()
    schedule.step(increment=1)
    grad_norm = global_grad_norm(state.optimizer)
    agreed = _agree(total, grad_norm, 0.0 if shutdown is None else shutdown.code, source.device)
    if shutdown is not None:
        shutdown.agree(agreed.stop_code)
    loss = agreed.loss_sum / normalizer
    finite, spike = agreed.not_finite == 0, False
    if finite:
        with phase("optimizer"):
            clip_and_step(state.optimizer, grad_norm)
            if state.ema is not None:
                state.ema.update()
        spike = state.spikes.update(loss)
    else:
        state.spikes.skip()
    state.iteration = iteration
    return StepResult(
        loss=loss,
        grad_norm=grad_norm,
        learning_rate=float(state.optimizer.param_groups[0]["lr"]),
        valid_tokens=int(agreed.valid_tokens),
        skipped=not finite,
        spike=spike,
        peak_memory_gib=agreed.peak_memory_gib,
    )


def run_micro_batches(
    state: TrainingState, source: BatchSource, plans: list[list[MicroBatchPlan]], *, forward_only: bool
) -> Tensor:
    """[weighted sum of the loss, tokens with a loss weight] of the planned micro batches, on every rank's device."""
    seq_length, micro_batch_size = source.schedule_shape(plans[0][source.data_parallel_rank])
    with phase("forward-backward"):
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            # One iterator per model chunk, all over the same micro batches.
            data_iterator=[source.micro_batches(plans) for _ in state.chunks],
            model=state.chunks,
            num_microbatches=len(plans),
            seq_length=seq_length,
            micro_batch_size=micro_batch_size,
            forward_only=forward_only,
        )
    # [2] tensors (weighted loss sum, valid tokens), one per micro batch, on the last pipeline stage only.
    total = torch.stack(reports).sum(0) if reports else torch.zeros(2, dtype=torch.double, device=source.device)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return total


def forward_step(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], LossOutput]]:
    """Run one micro batch through ``model``; the signature is that of Megatron-Core's schedules."""
    batch = next(batches)
    token_loss_BS = model(
        batch.tokens,
        batch.position_ids,
        None,  # attention is causal within sequences or segments
        labels=batch.labels,
        packed_seq_params=batch.packed_seq_params,
        padding_mask=router_padding_mask(batch.padding_mask, model.module),
    )
    return token_loss_BS, functools.partial(weighted_sum, batch.loss_weights)


def weighted_sum(loss_weights_BS: Tensor, token_loss_BS: Tensor) -> LossOutput:
    """(weighted sum, number of tokens with a loss weight, both again as [2] for the report)."""
    loss = torch.sum(token_loss_BS.float() * loss_weights_BS)
    num_tokens = torch.count_nonzero(loss_weights_BS)
    return loss, num_tokens.to(torch.int), torch.stack([loss.detach(), num_tokens]).double()


@torch.no_grad()
def validation_loss(state: TrainingState, source: BatchSource) -> float:
    """Weighted mean loss over a single pass of ``source``, the same on every rank; every rank must call it."""
    assert source.single_pass
    for chunk in state.chunks:
        chunk.eval()
    total, weight = torch.zeros(2, dtype=torch.double, device=source.device), 0.0
    for number in range(1, source.batches_in_pass + 1):
        total += run_micro_batches(state, source, source.plan(number), forward_only=True)
        weight += source.normalizer(number)
    for chunk in state.chunks:
        chunk.train()
    return float(total[0]) / weight


class _Agreed(NamedTuple):
    """Numbers of a step that are the same on every rank."""

    loss_sum: float
    valid_tokens: float
    not_finite: float  # above 0 if the loss, or the norm of the gradient on any rank, is not finite
    peak_memory_gib: float  # the largest of any rank
    stop_code: float  # the largest of any rank


def _agree(total: Tensor, grad_norm: float, stop_code: float, device: Device) -> _Agreed:
    """What every rank knows after a step. The host waits for the device once, for all numbers together.

    Args:
        total: as ``run_micro_batches`` returns it.
    """
    if device == "cuda":
        gib = torch.cuda.max_memory_allocated() / 2**30
    else:
        gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    here = torch.tensor([float(not math.isfinite(grad_norm)), gib, stop_code], dtype=torch.double)
    largest = to_device(here, device)
    largest[0] += ~total[0].isfinite()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return _Agreed(*torch.cat([total, largest]).tolist())
