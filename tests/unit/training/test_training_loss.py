"""Tests for the weighted loss of training."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.dataset.indexed import IndexedWriter
from megatron_ssd.dataset.packed_dataset import PackedDataset
from megatron_ssd.runtime.device import prepare_device
from megatron_ssd.runtime.process_groups import process_groups
from megatron_ssd.training.step import weighted_sum
from megatron_ssd.training.trainer import build_trainer
from tests.helpers.devices import without_gpu
from tests.helpers.tiny_hf import write_hf_folder
from tests.helpers.training_run import CPU, DENSE, EXACT, VOCAB_SIZE, publish_documents, training_config


def test_the_weighted_sum_and_the_number_of_tokens_with_a_weight() -> None:
    token_loss = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], requires_grad=True)
    weights = torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    loss, count, report = weighted_sum(weights, token_loss)
    assert loss.item() == 36.0
    assert count.item() == 3
    assert count.dtype == torch.int
    assert report.tolist() == [36.0, 3.0]
    loss.backward()
    assert torch.equal(token_loss.grad, weights)


def test_a_batch_without_valid_tokens_has_no_loss() -> None:
    loss, count, _ = weighted_sum(torch.zeros(1, 2), torch.ones(1, 2))
    assert (loss.item(), count.item()) == (0.0, 0)


# Two samples in one sequence: prompt of 3 ids and response of 2, prompt of 2 and response of 4. Nothing predicts the
# first id of a prompt, so the predicted tokens are 2 + 2 and 1 + 4. Their losses are chosen below.
LOSSES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
EXPECTED = {
    ("token", 0.0): (3 + 4 + 6 + 7 + 8 + 9) / 6,
    ("token", 0.5): ((1 + 2 + 5) / 2 + 3 + 4 + 6 + 7 + 8 + 9) / (6 + 1.5),
    ("sequence", 0.0): ((3 + 4) / 2 + (6 + 7 + 8 + 9) / 4) / 2,
    ("sequence", 0.5): ((0.5 + 1 + 3 + 4) / 3 + (2.5 + 6 + 7 + 8 + 9) / 4.5) / 2,
    ("token", 1.0): sum(LOSSES) / 9,
}


@pytest.mark.parametrize(("normalization", "prompt_weight"), EXPECTED)
def test_the_loss_equals_a_hand_computation(tmp_path: Path, normalization: Any, prompt_weight: float) -> None:
    with IndexedWriter(tmp_path / "samples", vocab_size=VOCAB_SIZE) as writer:
        writer.add([1, 2, 3], [4, 5])
        writer.add([6, 7], [8, 9, 10, 11])
    training = TrainingConfig(
        seq_length=12, packing="best_fit", batch_unit="packed_sequences", overlong="error",
        loss_normalization=normalization,
        prompt_loss_weight=prompt_weight,
    )  # fmt: skip
    dataset = PackedDataset(tmp_path / "samples", training, objective="sft", seed=0)
    sequence = dataset.sequence(0, 0)
    # The samples may be in either order: give each token the loss of the id that it predicts.
    loss_of = dict(zip([2, 3, 4, 5, 7, 8, 9, 10, 11], LOSSES, strict=True))
    losses = torch.tensor([loss_of.get(label, 100.0) for label in sequence["labels"].tolist()])
    total, _, _ = weighted_sum(torch.from_numpy(sequence["loss_weights"]), losses)
    assert total.item() / dataset.sequence_weight(0, 0) == pytest.approx(
        EXPECTED[normalization, prompt_weight], rel=1e-6
    )
    assert sequence["loss_weights"].sum() == pytest.approx(dataset.sequence_weight(0, 0), rel=1e-6)
    # Normalization by sequence does not change the total weight.
    assert dataset.sequence_weight(0, 0) == pytest.approx(6 + 3 * prompt_weight)


def write_pairs(run_dir: Path) -> None:
    """Publish ``run_dir/dataset`` with prompts and responses of very different lengths."""
    random = np.random.default_rng(0)
    publish_documents(
        run_dir,
        [[random.integers(1, VOCAB_SIZE, random.integers(2, size)).tolist() for size in (12, 40)] for _ in range(60)],
    )


def first_step(run_dir: Path, **training: Any) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Train one iteration of 8 sequences; returns (loss, gradient norm, gradients by name)."""
    config = training_config(
        run_dir, objective="sft", training=training, model=dataclasses.replace(DENSE, path=str(run_dir / "base"))
    )
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, clip_grad=1e9))
    with process_groups(ParallelConfig(), device=prepare_device(CPU, EXACT)):
        trainer = build_trainer(config, run_dir / "none", "cpu")
        metrics = trainer.step()
        gradients = {name: p.main_grad.clone() for name, p in trainer.state.chunks[0].named_parameters()}
    return metrics.loss, metrics.grad_norm, gradients


@without_gpu
@pytest.mark.parametrize("packing", ["none", "greedy"])
@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_micro_batches_do_not_change_the_gradients(tmp_path: Path, normalization: str, packing: str) -> None:
    write_pairs(tmp_path)
    write_hf_folder(tmp_path / "base", DENSE)
    changes = {"loss_normalization": normalization, "prompt_loss_weight": 0.25, "packing": packing}
    loss, norm, gradients = first_step(tmp_path, micro_batch_size=4, **changes)
    assert math.isfinite(loss)
    for micro_batch_size in (1, 2):
        loss_of_parts, norm_of_parts, parts = first_step(tmp_path, micro_batch_size=micro_batch_size, **changes)
        assert loss_of_parts == pytest.approx(loss, rel=1e-6)
        assert norm_of_parts == pytest.approx(norm, rel=5e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-7)
