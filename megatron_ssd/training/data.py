"""Makes the micro batches of one process, as a function of the iteration number alone.

Packed sequences (or samples, if ``training.batch_unit`` counts those) have a global order that the data set fixes from
(seed, epoch). Iteration i (from 1) takes the ``global_batch_size`` ones after the first (i - 1) x
``global_batch_size``. So resuming needs no state, and no layout changes which samples an iteration sees.

How they become micro batches:
- Packed sequences of an epoch, and samples without packing: each data-parallel replica takes its slice of every micro
  batch. Samples are padded to the longest of their micro batch.
- Samples with packing: ``dataset.packing.plan_step`` distributes those of the iteration over the fewest micro batches
  of at most ``tokens_per_micro_batch`` tokens, so that all replicas have about the same work.

Worked, for slices: global batch 8, micro batch 2, 2 replicas, iteration 3. Sequences 16..23; micro batch 0 is 16 17 on
replica 0 and 18 19 on replica 1, micro batch 1 is 20 21 and 22 23.

The packed sequences of a micro batch are joined to one sequence of B x S tokens, cut into segments
(``PackedSeqParams``). Every pipeline stage makes its own batches, so that it knows the segments: they decide the rotary
positions, which start at 0 in each, and the attention mask. Context-parallel ranks take their part of each segment or
sequence (``runtime.packed_sequences``).

Shape suffixes: B micro batch, S sequence.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from megatron.core import parallel_state
from numpy.typing import NDArray
from torch import Tensor

from megatron_ssd.config.cluster import Device
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.dataset.indexed import DATASET_NAME
from megatron_ssd.dataset.packed_dataset import PackedDataset, PackedSequence
from megatron_ssd.dataset.packing import plan_step
from megatron_ssd.errors import require
from megatron_ssd.planner.flops import flops_by_segment
from megatron_ssd.runtime.packed_sequences import local_positions, make_packed_sequences
from megatron_ssd.runtime.process_groups import on_rank_zero
from megatron_ssd.runtime.transfer import to_device
from megatron_ssd.training.profiling import phase

Parts = list[tuple[int, int]]  # packed sequences of the data set by (epoch, index)


@dataclass(frozen=True)
class Batch:
    """One micro batch on the device, each tensor [B, S], or [1, B * S] with packing.

    Under context parallelism it holds the tokens of this rank only. ``padding_mask`` is true for padding.
    ``packed_seq_params`` (``PackedSequences``) describes the segments of all ranks; if it is None, each sequence is one
    segment.
    """

    tokens: Tensor
    labels: Tensor
    loss_weights: Tensor
    position_ids: Tensor
    padding_mask: Tensor
    packed_seq_params: Any | None


@dataclass(frozen=True)
class MicroBatchPlan:
    """What is in a micro batch: the parts of each of its sequences.

    Each sequence is padded to ``length`` tokens. One without parts is padding alone.
    """

    sequences: list[Parts]
    length: int

    @property
    def num_tokens(self) -> int:
        """All tokens, padding included."""
        return len(self.sequences) * self.length


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """Cuts the micro batches of one data-parallel replica from a data set.

    Args:
        length_multiple: see ``RunConfig.length_multiple``.
        equal_lengths: all micro batches of an iteration have the same length, on all replicas: pipeline stages send
            each other tensors of one shape, and some exchanges of experts need it too.
        micro_batch_multiple: packed samples of an iteration give a multiple of this many micro batches.
        costs: estimated work of samples by their lengths, [samples] to [samples].
        single_pass: the source ends with the first epoch, as validation does: what follows is padding.
    """

    dataset: PackedDataset
    training: TrainingConfig
    data_parallel_rank: int
    data_parallel_size: int
    context_parallel_rank: int = 0
    context_parallel_size: int = 1
    device: Device
    length_multiple: int = 1
    equal_lengths: bool = False
    micro_batch_multiple: int = 1
    costs: Callable[[NDArray[np.int64]], NDArray[np.float64]] = np.asarray
    single_pass: bool = False

    @property
    def batches_in_pass(self) -> int:
        """Number of global batches in the first epoch."""
        return -(-self.dataset.num_sequences(0) // self.training.global_batch_size)

    def schedule_shape(self, plan: MicroBatchPlan) -> tuple[int, int]:
        """(sequence length, micro batch size) for Megatron-Core's schedules, before context parallelism."""
        length, size = plan.length, len(plan.sequences)
        return (length, size) if self.training.packing == "none" else (length * size, 1)

    def plan(self, iteration: int) -> list[list[MicroBatchPlan]]:
        """The micro batches of ``iteration`` (from 1), [micro batch][replica]."""
        located = self._global_batch(iteration)
        rows = self._packed(located) if self.training.packs_steps else self._sliced(located)
        if self.training.epoch_packing != "none":
            return [[MicroBatchPlan(sequences, self.training.seq_length) for sequences in row] for row in rows]
        plans = [[MicroBatchPlan(sequences, self._padded(sequences)) for sequences in row] for row in rows]
        if self.equal_lengths:
            longest = max(plan.length for row in plans for plan in row)
            plans = [[dataclasses.replace(plan, length=longest) for plan in row] for row in plans]
        return plans

    def micro_batches(self, plans: Sequence[Sequence[MicroBatchPlan]]) -> Iterator[Batch]:
        """The planned micro batches of this replica, one after another."""
        for row in plans:
            plan = row[self.data_parallel_rank]
            with phase("data"):
                batch = self.batch([self.dataset.joined(parts, plan.length) for parts in plan.sequences])
            yield batch

    def _sliced(self, located: Parts) -> list[list[list[Parts]]]:
        """[micro batch][replica][sequence] -> its parts: one packed sequence, or none after the end of the data."""
        size, replicas = self.training.micro_batch_size, self.data_parallel_size
        total = self.training.num_microbatches(replicas) * replicas * size
        parts = [[at] for at in located] + [[] for _ in range(total - len(located))]
        groups = [parts[start : start + size] for start in range(0, total, size)]
        return [groups[start : start + replicas] for start in range(0, len(groups), replicas)]

    def _packed(self, located: Parts) -> list[list[list[Parts]]]:
        """The same for packed samples: each micro batch is one sequence."""
        lengths = np.array([self.dataset.padded_length(*at) for at in located], dtype=np.int64)
        planned = plan_step(
            lengths, self.costs(lengths), capacity=self.training.micro_batch_tokens,
            num_replicas=self.data_parallel_size, multiple=self.micro_batch_multiple,
        )  # fmt: skip
        return [[[[located[sample] for sample in samples]] for samples in row] for row in planned]

    def _padded(self, sequences: list[Parts]) -> int:
        """The length of the longest of these sequences, rounded up; padding alone still has a token to compute."""
        longest = max(sum(self.dataset.padded_length(*at) for at in parts) for parts in sequences)
        return -(-max(longest, 1) // self.length_multiple) * self.length_multiple

    def normalizer(self, iteration: int) -> float:
        """Sum of all loss weights of the global batch of ``iteration``, by which loss and gradient are divided.

        It depends on the index alone, so every rank knows it without communication.
        """
        # Rounded once: the built-in sum rounds differently from Python 3.12 on.
        return math.fsum(self.dataset.sequence_weight(*at) for at in self._global_batch(iteration))

    def sample_digest(self, iteration: int) -> str:
        """Short hash of the document numbers in the global batch of ``iteration``, in order; the same in any layout."""
        documents = [self.dataset.samples_in_sequence(*at) for at in self._global_batch(iteration)]
        return hashlib.sha256(np.concatenate(documents).astype("<i8").tobytes()).hexdigest()[:16]

    def sample_lengths(self, iteration: int) -> NDArray[np.int64]:
        """Tokens of each sample in the global batch of ``iteration``, in order."""
        return np.concatenate([self.dataset.lengths_in_sequence(*at) for at in self._global_batch(iteration)])

    def batch(self, sequences: list[PackedSequence]) -> Batch:
        """These sequences as one micro batch, or this rank's part of them."""
        columns = {key: np.stack([each[key] for each in sequences]) for key in sequences[0]}
        segment_ids_BS = columns.pop("segment_ids")
        packed_seq_params = None
        lengths: tuple[int, ...] = (segment_ids_BS.shape[1],)
        if self.training.packing != "none":
            lengths = segment_lengths(segment_ids_BS)
            packed_seq_params = make_packed_sequences(lengths, cp_size=self.context_parallel_size, device=self.device)
            columns = {key: column.reshape(1, -1) for key, column in columns.items()}
        if self.context_parallel_size > 1:
            here = local_positions(lengths, cp_size=self.context_parallel_size, cp_rank=self.context_parallel_rank)
            columns = {key: column[:, here] for key, column in columns.items()}
        tensors = {key: to_device(torch.from_numpy(column), self.device) for key, column in columns.items()}
        return Batch(**tensors, packed_seq_params=packed_seq_params)

    def _global_batch(self, iteration: int) -> Parts:
        """(epoch, index) of each sequence of the global batch of ``iteration``."""
        size = self.training.global_batch_size
        located = (self._locate(sequence) for sequence in range((iteration - 1) * size, iteration * size))
        return [at for at in located if at is not None]

    def _locate(self, sequence: int) -> tuple[int, int] | None:
        epoch, index = self.dataset.locate(sequence)
        return None if self.single_pass and epoch > 0 else (epoch, index)


def segment_lengths(segment_ids_BS: NDArray[np.int64]) -> tuple[int, ...]:
    """Lengths of the runs of equal ids, sequence after sequence; a run ends with its sequence."""
    begins = np.ones(segment_ids_BS.shape, dtype=bool)
    begins[:, 1:] = segment_ids_BS[:, 1:] != segment_ids_BS[:, :-1]
    starts = np.flatnonzero(begins)
    return tuple(np.diff(starts, append=segment_ids_BS.size).tolist())


def open_dataset(
    config: RunConfig, model: ModelConfig, *, split: Literal["train", "validation"] = "train"
) -> PackedDataset:
    """The part ``split`` of ``run_dir/dataset``, packed as ``config.training`` says.

    Raises:
        UserError: there is none, it has another objective or vocabulary, or no sample is left.
    """
    dataset = PackedDataset(
        Path(config.run_dir) / "dataset" / DATASET_NAME,
        config.training,
        objective=config.objective,
        seed=config.seed,
        segment_multiple=config.segment_multiple,
        split=split,
    )
    largest = on_rank_zero(dataset.max_token_id) if split == "train" else 0
    require(
        largest < model.vocab_size,
        f"model.vocab_size = {model.vocab_size}",
        rule=f"wrong vocabulary size: the data set in {config.run_dir}/dataset holds token id {largest}",
        fix="train the model whose tokenizer made the data set, or make the data set again for this model",
    )
    return dataset


def batch_source(
    dataset: PackedDataset, config: RunConfig, model: ModelConfig, *, device: Device, single_pass: bool = False
) -> BatchSource:
    """The micro batches of this process, by its ranks in Megatron-Core's grid."""
    parallel = config.parallel
    stages = parallel.pipeline_model_parallel_size
    return BatchSource(
        dataset=dataset,
        training=config.training,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel.data_parallel_size,
        context_parallel_rank=parallel_state.get_context_parallel_rank(),
        context_parallel_size=parallel.context_parallel_size,
        device=device,
        length_multiple=config.length_multiple,
        equal_lengths=stages > 1 or parallel.expert_model_parallel_size > 1,
        # Interleaved stages take micro batches in groups of this size.
        micro_batch_multiple=stages if parallel.virtual_pipeline_model_parallel_size else 1,
        costs=functools.partial(flops_by_segment, model),
        single_pass=single_pass,
    )
