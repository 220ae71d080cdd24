"""Builds packed sequences for training from Megatron's indexed data set.

A document of n ids gives a sample of n - 1 tokens: token i is id i, and its label is id i + 1. A packed sequence is
``seq_length`` tokens: complete samples one after another, each a segment with position ids from 0, then padding. If
batches are counted in samples (``training.batch_unit``), each sample is a packed sequence of its own here, and
``joined`` packs those of an iteration.

- ``sft``: documents are [prompt, response]. A token whose label is a response id has loss weight 1, from the last
  prompt id on; the others have ``prompt_loss_weight``. An end token is part of the response ids or absent.
- ``pretrain``: documents are texts, of one sequence or of one sequence per sentence, and every token has weight 1.

With ``loss_normalization=sequence`` the weights are scaled so that their sum is equal for all samples: the mean of the
sums with ``token``. So the size of this loss does not change relative to the auxiliary loss of a mixture of experts,
which is summed over tokens. The weight of a packed sequence is known from the index alone.

Segments are numbered from 1; padding at the end is segment 0. The length of a segment may be rounded up, for context
parallelism; this padding belongs to the segment. Padding of either kind has weight 0, and is true in ``padding_mask``.

A share of the documents may be held out for validation; they depend on the seed alone. Opening reads the .idx only.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.dataset.indexed import largest_id, mapped_ids, open_indexed, read_indexed
from megatron_ssd.dataset.packing import PackingReport, plan_epoch, round_up
from megatron_ssd.errors import UserError

log = logging.getLogger(__name__)

PackedSequence = dict[str, NDArray[Any]]  # column -> [seq_length]

_PAD_ID = 0
_SEED_DOMAIN = 0x5E1D  # separates the choice of held-out documents from other random streams of the same run seed


class PackedDataset:
    """The packed sequences of a data set, addressed by (epoch, index).

    Args:
        prefix: path of the data set without suffix.
        training: how samples are packed and weighted, and how many are held out.
        objective: which tokens carry loss, see the module docstring.
        seed: seed of the run; order and packing depend on it and on the epoch.
        segment_multiple: the length of a segment is rounded up to a multiple of this (``RunConfig.segment_multiple``).
        split: whether this is the training or the validation part.

    Attributes:
        counts: ``documents`` in the files, ``held_out`` of them for validation, and for the documents of this part:
            ``samples`` in packed sequences, their ``target_tokens``, and what was dropped or truncated: ``no_target``
            (no label is a response id) and ``overlong``.

    Raises:
        UserError: the files are missing or of another objective, a sample is overlong and ``overlong`` is ``error``,
            or no sample is left in this part.
    """

    def __init__(
        self,
        prefix: Path,
        training: TrainingConfig,
        *,
        objective: Literal["sft", "pretrain"],
        seed: int,
        segment_multiple: int = 1,
        split: Literal["train", "validation"] = "train",
    ) -> None:
        assert training.seq_length % segment_multiple == 0, "RunConfig checks it"
        assert split == "train" or training.validation_fraction > 0, "nothing is held out"
        self._prefix = prefix
        self._dataset = open_indexed(prefix)
        self._training = training
        self._seed = seed
        self._sequences_before: list[int] = [0]  # of all epochs before epoch i

        boundaries = self._document_boundaries(objective)
        documents = self._documents_of(split, len(boundaries) - 1)
        sequence_lengths = self._dataset.sequence_lengths.astype(np.int64)
        ids_before = np.concatenate(([0], np.cumsum(sequence_lengths)))[boundaries]
        firsts, num_tokens = boundaries[documents], np.diff(ids_before)[documents] - 1
        unscored = np.maximum(sequence_lengths[firsts] - 1, 0) if objective == "sft" else np.zeros_like(firsts)
        self._keep(documents, firsts, num_tokens=num_tokens, unscored=unscored)
        self._padded_lengths = round_up(self._lengths, segment_multiple)
        prompts, responses = self._unscored, self._lengths - self._unscored
        weights = responses + training.prompt_loss_weight * prompts  # of samples, before normalisation
        self._divisors = np.ones(len(weights))
        if training.loss_normalization == "sequence":
            self._divisors = weights / weights.mean()
        self._sample_weights = weights / self._divisors
        plan = functools.partial(
            plan_epoch, self._padded_lengths, seq_length=training.seq_length, packing=training.epoch_packing, seed=seed
        )
        # A cache per instance: a cache on a method would keep every data set alive.
        self._plan = functools.lru_cache(maxsize=2)(lambda epoch: plan(epoch=epoch))

    def num_sequences(self, epoch: int) -> int:
        """Number of packed sequences in ``epoch``."""
        return len(self._lengths) if self._training.epoch_packing == "none" else self._plan(epoch).num_sequences

    def locate(self, consumed: int) -> tuple[int, int]:
        """(epoch, index) of the packed sequence that follows ``consumed`` others since the start of training."""
        while self._sequences_before[-1] <= consumed:
            self._sequences_before.append(
                self._sequences_before[-1] + self.num_sequences(len(self._sequences_before) - 1)
            )
        epoch = int(np.searchsorted(self._sequences_before, consumed, side="right")) - 1
        return epoch, consumed - self._sequences_before[epoch]

    def samples_in_sequence(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Document numbers of the samples in a packed sequence, in order."""
        documents: NDArray[np.int64] = self._documents[self._plan(epoch).sequence(index)]
        return documents

    def lengths_in_sequence(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Tokens of each sample in a packed sequence, in order."""
        lengths: NDArray[np.int64] = self._lengths[self._plan(epoch).sequence(index)]
        return lengths

    def sequence_weight(self, epoch: int, index: int) -> float:
        """Sum of the loss weights of a packed sequence, from the index alone."""
        return float(self._sample_weights[self._plan(epoch).sequence(index)].sum())

    def padded_length(self, epoch: int, index: int) -> int:
        """Tokens of a packed sequence, with what rounding adds to each sample, without padding at the end."""
        return int(self._padded_lengths[self._plan(epoch).sequence(index)].sum())

    def sequence(self, epoch: int, index: int) -> PackedSequence:
        """A packed sequence.

        The columns ``tokens``, ``labels``, ``position_ids``, ``segment_ids`` (int64), ``loss_weights`` (float32) and
        ``padding_mask`` (bool) each have shape [seq_length].
        """
        return self.joined([(epoch, index)], self._training.seq_length)

    def joined(self, located: Sequence[tuple[int, int]], length: int) -> PackedSequence:
        """The samples of several packed sequences, named by (epoch, index), as one sequence of ``length`` tokens.

        For none of them it is a sequence of padding, with weight 0.
        """
        return self._lay_out(
            [sample for at in located for sample in self._plan(at[0]).sequence(at[1]).tolist()], length
        )

    def single_sample_sequence(self, epoch: int, index: int, slot: int, length: int) -> PackedSequence:
        """A sequence of ``length`` tokens that contains only sample ``slot`` (from 0) of packed sequence ``index``."""
        return self._lay_out([int(self._plan(epoch).sequence(index)[slot])], length)

    def packing_report(self) -> PackingReport:
        """How full the packed sequences of the first epoch are."""
        return PackingReport(
            packing=self._training.epoch_packing,
            seq_length=self._training.seq_length,
            samples=self.counts["samples"],
            overlong=self.counts["overlong"],
            tokens=int(self._lengths.sum()),
            sequences=self.num_sequences(0),
        )

    def max_token_id(self) -> int:
        """The largest id in the files. Reads the .bin once."""
        return largest_id(mapped_ids(self._prefix, read_indexed(self._prefix)))

    def _lay_out(self, samples: list[int], size: int) -> PackedSequence:
        """Samples one after another, then padding up to ``size`` tokens."""
        tokens, labels = np.full(size, _PAD_ID, dtype=np.int64), np.full(size, _PAD_ID, dtype=np.int64)
        position_ids, segment_ids = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        loss_weights, padding_mask = np.zeros(size, dtype=np.float32), np.ones(size, dtype=bool)
        start = 0
        for segment, sample in enumerate(samples, start=1):
            length, padded = int(self._lengths[sample]), int(self._padded_lengths[sample])
            # The sequences of a document are contiguous, and the last token's label is one id more.
            ids = self._dataset.get(int(self._firsts[sample]), length=length + 1)
            tokens[start : start + length], labels[start : start + length] = ids[:length], ids[1 : length + 1]
            padding_mask[start : start + length] = False
            position_ids[start : start + padded], segment_ids[start : start + padded] = np.arange(padded), segment
            response = start + int(self._unscored[sample])
            loss_weights[start:response] = self._training.prompt_loss_weight / self._divisors[sample]
            loss_weights[response : start + length] = 1.0 / self._divisors[sample]
            start += padded
        # Padding has rising position ids too, so that position encodings treat it like any other segment.
        position_ids[start:] = np.arange(size - start)
        return {
            "tokens": tokens,
            "labels": labels,
            "loss_weights": loss_weights,
            "position_ids": position_ids,
            "segment_ids": segment_ids,
            "padding_mask": padding_mask,
        }

    def _documents_of(self, split: str, num_documents: int) -> NDArray[np.int64]:
        """Numbers of the documents of this part."""
        held_out = np.zeros(num_documents, dtype=bool)
        if fraction := self._training.validation_fraction:
            order = np.random.default_rng([_SEED_DOMAIN, self._seed]).permutation(num_documents)
            held_out[order[: max(1, round(fraction * num_documents))]] = True
        self.counts = {"documents": num_documents, "held_out": int(held_out.sum())}
        return np.flatnonzero(held_out if split == "validation" else ~held_out)

    def _document_boundaries(self, objective: str) -> NDArray[np.int64]:
        """Sequences before each document, and the number of sequences, [num_documents + 1]."""
        boundaries: NDArray[np.int64] = self._dataset.document_indices.astype(np.int64)
        counts = np.diff(boundaries)
        what, fix = f"data set {self._prefix} with objective = {objective}", "or name the data set made for it"
        not_pairs = np.flatnonzero(counts != 2)
        if objective == "sft" and len(not_pairs):
            raise UserError(
                what,
                rule="documents must be pairs of [prompt, response], which decides where loss begins, and document "
                f"{not_pairs[0]} has {counts[not_pairs[0]]} sequence(s)",
                fix=f"set objective=pretrain {fix}",
            )
        if objective == "pretrain" and not len(not_pairs):
            raise UserError(
                what,
                rule="every document has 2 sequences, so they are pairs of [prompt, response]",
                fix=f"set objective=sft {fix}",
            )
        return boundaries

    def _keep(
        self,
        documents: NDArray[np.int64],
        firsts: NDArray[np.int64],
        *,
        num_tokens: NDArray[np.int64],
        unscored: NDArray[np.int64],
    ) -> None:
        """Decide which documents are samples, with their lengths and numbers of leading tokens without loss."""
        seq_length, overlong = self._training.seq_length, self._training.overlong
        is_overlong = num_tokens > seq_length
        if overlong == "error" and is_overlong.any():
            worst = int(num_tokens.argmax())
            raise UserError(
                f"training.overlong = error with training.seq_length = {seq_length}",
                rule=f"{is_overlong.sum()} samples are longer "
                f"(document {documents[worst]}: {num_tokens[worst]} tokens)",
                fix="raise training.seq_length, or set training.overlong to drop or truncate",
            )
        lengths = np.minimum(num_tokens, seq_length)
        has_target, fits = lengths > unscored, ~is_overlong | (overlong != "drop")
        kept = has_target & fits
        self.counts |= {
            "samples": int(kept.sum()),
            "overlong": int(is_overlong.sum()),
            "no_target": int((~has_target & fits).sum()),
            "target_tokens": int((lengths - unscored)[kept].sum()),
        }
        if not kept.any():
            raise UserError(
                f"data set {self._prefix} with training.seq_length = {seq_length}",
                rule=f"no sample is left ({self.counts})",
                fix="raise training.seq_length, set training.overlong=truncate, or check training.validation_fraction",
            )
        if is_overlong.any():
            log.info("dataset: %d samples over %d tokens: %s", is_overlong.sum(), seq_length, overlong)
        self._documents = documents[kept]
        self._firsts, self._lengths, self._unscored = firsts[kept], lengths[kept], unscored[kept]
