"""Rows for training, cut from Megatron's indexed data set.

A document of n ids gives n - 1 positions: position i sees id i and predicts id i + 1. A row is ``seq_length`` positions
that hold whole samples one after the other, each its own segment with positions from 0, then padding.

- ``sft``: documents are [prompt, response]. A position that predicts a response id weighs 1 in the loss, the first of
  them being the last prompt id; the others weigh ``prompt_loss_weight``. An end token is in the response ids or it is
  nowhere, so nothing is added here.
- ``pretrain``: documents are texts, of one sequence or of one a sentence, and every position weighs 1.

With ``loss_normalization=sequence`` the weights of a sample are divided by their sum, so that all samples weigh alike:
as much as the mean of them weighs otherwise, because an auxiliary loss of a mixture of experts is summed by tokens and
must keep its size beside this one. What a row weighs is known from the index alone.

Segments are numbered from 1; padding at a row's end is segment 0. In packed rows the place of a sample may be rounded
up, for context parallelism: the rest of it belongs to the sample's segment. Nothing of this weighs in the loss.

A share of the documents may be held out for validation: which ones depends on the seed alone. Opening reads the .idx
alone.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.dataset.indexed import open_indexed
from megatron_ssd.dataset.packing import PackingMode, PackingPlan, PackingReport, packing_report, plan_epoch, round_up
from megatron_ssd.errors import UserError

log = logging.getLogger(__name__)

PackedSequence = dict[str, NDArray[Any]]  # column -> [seq_length]

_SEED_DOMAIN = 0x5E1D  # keeps the choice of held-out documents apart from other streams of the same run seed
_CHUNK = 1 << 24  # ids looked at together when the largest is searched


class PackedDataset:
    """Packed or padded rows of an epoch, addressed by (epoch, row).

    Args:
        prefix: path of the data set without ending.
        objective: which positions carry loss, see the module's docstring.
        seq_length: positions in a row.
        packing: ``none`` for one sample a row, ``greedy`` or ``best_fit`` for many.
        overlong: what becomes of samples with more than ``seq_length`` positions.
        seed: of the run; with the epoch it fixes order and packing.
        loss_normalization: ``token`` leaves weights as they are, ``sequence`` gives every sample the same sum.
        prompt_loss_weight: of a position that predicts a prompt id, beside 1 for a response id.
        segment_multiple: what the place of a sample in a packed row is rounded up to; it divides ``seq_length``.
        validation_fraction: share of the documents that is held out of training.
        split: which of the two parts this is.
        pad_id: the id that fills rows.

    Attributes:
        counts: ``documents`` in the files, ``held_out`` of them for validation, and of the documents of this part:
            ``samples`` in rows, ``target_tokens`` of them, and what was left out or cut: ``no_target`` (no position
            predicts a response id), ``overlong`` (dropped or truncated, as asked).

    Raises:
        UserError: the files are missing or of another objective, a sample is over long and ``overlong`` is ``error``,
            or no sample is left in this part.
    """

    def __init__(
        self,
        prefix: Path,
        *,
        objective: Literal["sft", "pretrain"],
        seq_length: int,
        packing: PackingMode,
        overlong: Literal["drop", "truncate", "error"],
        seed: int,
        loss_normalization: Literal["token", "sequence"] = "token",
        prompt_loss_weight: float = 0.0,
        segment_multiple: int = 1,
        validation_fraction: float = 0.0,
        split: Literal["train", "validation"] = "train",
        pad_id: int = 0,
    ) -> None:
        assert seq_length % segment_multiple == 0, "RunConfig checks it"
        assert split == "train" or validation_fraction > 0, "nothing is held out"
        self._prefix = prefix
        self._dataset = open_indexed(prefix)
        self._seq_length = seq_length
        self._packing = packing
        self._seed = seed
        self._prompt_loss_weight = prompt_loss_weight
        self._segment_multiple = segment_multiple if packing != "none" else 1
        self._pad_id = pad_id
        self._rows_before: list[int] = [0]  # rows of all epochs before epoch i

        borders = self._document_borders(objective)
        documents = self._documents_of(split, validation_fraction, len(borders) - 1)
        sequence_lengths = self._dataset.sequence_lengths.astype(np.int64)
        ids_before = np.concatenate(([0], np.cumsum(sequence_lengths)))[borders]
        firsts, positions = borders[documents], np.diff(ids_before)[documents] - 1
        unscored = np.maximum(sequence_lengths[firsts] - 1, 0) if objective == "sft" else np.zeros_like(firsts)
        self._keep(documents, firsts, positions=positions, unscored=unscored, overlong=overlong)
        self._places = round_up(self._lengths, self._segment_multiple)
        prompts, responses = self._unscored, self._lengths - self._unscored
        weights = responses + prompt_loss_weight * prompts  # of whole samples, before normalisation
        self._divisors = weights / weights.mean() if loss_normalization == "sequence" else np.ones(len(weights))
        self._sample_weights = weights / self._divisors
        # An instance's own cache: a method's would keep every data set alive.
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)

    def num_sequences(self, epoch: int) -> int:
        """How many rows ``epoch`` has."""
        return len(self._lengths) if self._packing == "none" else self._plan(epoch).num_sequences

    def locate(self, consumed_rows: int) -> tuple[int, int]:
        """(epoch, row) of the row that follows after ``consumed_rows`` rows since the start of training."""
        while self._rows_before[-1] <= consumed_rows:
            self._rows_before.append(self._rows_before[-1] + self.num_sequences(len(self._rows_before) - 1))
        epoch = int(np.searchsorted(self._rows_before, consumed_rows, side="right")) - 1
        return epoch, consumed_rows - self._rows_before[epoch]

    def samples_in_sequence(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Document numbers of the samples in a row, in their order there."""
        documents: NDArray[np.int64] = self._documents[self._plan(epoch).sequence(index)]
        return documents

    def lengths_in_sequence(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Positions of each sample in a row, in their order there."""
        lengths: NDArray[np.int64] = self._lengths[self._plan(epoch).sequence(index)]
        return lengths

    def sequence_weight(self, epoch: int, index: int) -> float:
        """Sum of the loss weights of a row, from the index alone."""
        return float(self._sample_weights[self._plan(epoch).sequence(index)].sum())

    def sequence(self, epoch: int, index: int) -> PackedSequence:
        """One row: ``tokens``, ``labels``, ``position_ids``, ``segment_ids`` (int64) and ``loss_weights`` (float32).

        Each has shape [seq_length].
        """
        return self._lay_out(self._plan(epoch).sequence(index).tolist())

    def single_sample_sequence(self, epoch: int, index: int, place: int) -> PackedSequence:
        """A row with nothing in it but the sample that is at ``place`` (from 0) in a row."""
        return self._lay_out([int(self._plan(epoch).sequence(index)[place])])

    def empty_sequence(self) -> PackedSequence:
        """A row of padding, which weighs nothing."""
        return self._lay_out([])

    def packing_report(self) -> PackingReport:
        """How full the rows of the first epoch are."""
        report = packing_report(
            self._lengths,
            seq_length=self._seq_length,
            packing=self._packing,
            seed=self._seed,
            multiple=self._segment_multiple,
        )
        return dataclasses.replace(report, overlong=self.counts["overlong"])

    def max_token_id(self) -> int:
        """The largest id in the files. Reads all of the .bin once."""
        ids = np.memmap(f"{self._prefix}.bin", dtype=self._dataset.index.dtype, mode="r")
        return max(int(ids[start : start + _CHUNK].max()) for start in range(0, len(ids), _CHUNK))

    def _lay_out(self, samples: list[int]) -> PackedSequence:
        """Put samples one after the other, and padding after the last."""
        size = self._seq_length
        tokens, labels = np.full(size, self._pad_id, dtype=np.int64), np.full(size, self._pad_id, dtype=np.int64)
        position_ids, segment_ids = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        loss_weights = np.zeros(size, dtype=np.float32)
        start = 0
        for segment, sample in enumerate(samples, start=1):
            ids = self._ids(sample)
            length, place = int(self._lengths[sample]), int(self._places[sample])
            tokens[start : start + length], labels[start : start + length] = ids[:length], ids[1 : length + 1]
            position_ids[start : start + place], segment_ids[start : start + place] = np.arange(place), segment
            response = start + int(self._unscored[sample])
            loss_weights[start:response] = self._prompt_loss_weight / self._divisors[sample]
            loss_weights[response : start + length] = 1.0 / self._divisors[sample]
            start += place
        # Padding counts up as well, so that it looks like any other segment to position encodings.
        position_ids[start:] = np.arange(size - start)
        return {
            "tokens": tokens,
            "labels": labels,
            "loss_weights": loss_weights,
            "position_ids": position_ids,
            "segment_ids": segment_ids,
        }

    def _documents_of(self, split: str, validation_fraction: float, num_documents: int) -> NDArray[np.int64]:
        """Numbers of the documents of this part."""
        held_out = np.zeros(num_documents, dtype=bool)
        if validation_fraction:
            order = np.random.default_rng([_SEED_DOMAIN, self._seed]).permutation(num_documents)
            held_out[order[: max(1, round(validation_fraction * num_documents))]] = True
        self.counts = {"documents": num_documents, "held_out": int(held_out.sum())}
        return np.flatnonzero(held_out if split == "validation" else ~held_out)

    def _document_borders(self, objective: str) -> NDArray[np.int64]:
        """Sequences before each document, and their number, [num_documents + 1]."""
        borders: NDArray[np.int64] = self._dataset.document_indices.astype(np.int64)
        counts = np.diff(borders)
        what, fix = f"data set {self._prefix} with objective = {objective}", "or name the data set made for it"
        not_pairs = np.flatnonzero(counts != 2)
        if objective == "sft" and len(not_pairs):
            raise UserError(
                what,
                rule="documents must be pairs of [prompt, response], which says where loss begins, and document "
                f"{not_pairs[0]} has {counts[not_pairs[0]]} sequence(s)",
                fix=f"set objective=pretrain {fix}",
            )
        if objective == "pretrain" and not len(not_pairs):
            raise UserError(
                what,
                rule="every document has 2 sequences, so they are pairs of [prompt, response]",
                fix=f"set objective=sft {fix}",
            )
        return borders

    def _keep(
        self,
        documents: NDArray[np.int64],
        firsts: NDArray[np.int64],
        *,
        positions: NDArray[np.int64],
        unscored: NDArray[np.int64],
        overlong: str,
    ) -> None:
        """Fix which documents are samples, their lengths and their leading positions without loss."""
        is_overlong = positions > self._seq_length
        if overlong == "error" and is_overlong.any():
            worst = int(positions.argmax())
            raise UserError(
                f"training.overlong = error with training.seq_length = {self._seq_length}",
                rule=f"{is_overlong.sum()} samples are longer "
                f"(document {documents[worst]}: {positions[worst]} positions)",
                fix="raise training.seq_length, or set training.overlong to drop or truncate",
            )
        lengths = np.minimum(positions, self._seq_length)
        has_target = lengths > unscored
        kept = has_target & ~(is_overlong & (overlong == "drop"))
        self.counts |= {
            "samples": int(kept.sum()),
            "overlong": int(is_overlong.sum()),
            "no_target": int((~has_target & ~(is_overlong & (overlong == "drop"))).sum()),
            "target_tokens": int((lengths - unscored)[kept].sum()),
        }
        if not kept.any():
            raise UserError(
                f"data set {self._prefix} with training.seq_length = {self._seq_length}",
                rule=f"no sample is left ({self.counts})",
                fix="raise training.seq_length, set training.overlong=truncate, or check training.validation_fraction",
            )
        if is_overlong.any():
            log.info("dataset: %d samples over %d positions: %s", is_overlong.sum(), self._seq_length, overlong)
        self._documents = documents[kept]
        self._firsts, self._lengths, self._unscored = firsts[kept], lengths[kept], unscored[kept]

    def _make_plan(self, epoch: int) -> PackingPlan:
        return plan_epoch(
            self._places, seq_length=self._seq_length, packing=self._packing, seed=self._seed, epoch=epoch
        )

    def _ids(self, sample: int) -> NDArray[np.int64]:
        """The ids of a sample's positions and the one that the last of them predicts; sequences follow each other."""
        ids: NDArray[np.int64] = self._dataset.get(int(self._firsts[sample]), length=int(self._lengths[sample]) + 1)
        return ids
