"""Tests the token ids, labels and loss weights of packed sequences in every packing mode."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.dataset.indexed import IndexedWriter
from megatron_ssd.dataset.packed_dataset import PackedDataset
from megatron_ssd.errors import UserError
from tests.helpers.megatron_texts import write_megatron_texts

VOCAB = 100
SEQ_LENGTH = 16


def write_pairs(prefix: Path, pairs: list[tuple[list[int], list[int]]]) -> Path:
    with IndexedWriter(prefix, vocab_size=VOCAB) as writer:
        for prompt, response in pairs:
            writer.add(prompt, response)
    return prefix


def open_dataset(
    prefix: Path,
    *,
    objective: Any = "sft",
    seed: int = 0,
    segment_multiple: int = 1,
    split: Any = "train",
    seq_length: int = SEQ_LENGTH,
    **training: Any,
) -> PackedDataset:
    return PackedDataset(
        prefix,
        TrainingConfig(seq_length=seq_length, **{"batch_unit": "packed_sequences", "packing": "none", **training}),
        objective=objective,
        seed=seed,
        segment_multiple=segment_multiple,
        split=split,
    )


@pytest.fixture
def random_pairs() -> list[tuple[list[int], list[int]]]:
    generator = np.random.default_rng(0)
    return [
        (
            generator.integers(1, VOCAB, generator.integers(1, 5)).tolist(),
            generator.integers(1, VOCAB, generator.integers(1, 6)).tolist(),
        )
        for _ in range(40)
    ]


def test_one_sample_equals_a_hand_computation(tmp_path: Path) -> None:
    dataset = open_dataset(write_pairs(tmp_path / "data", [([5, 6, 7], [8, 9])]), seq_length=6)
    packed = dataset.sequence(0, 0)
    assert packed["tokens"].tolist() == [5, 6, 7, 8, 0, 0]
    assert packed["labels"].tolist() == [6, 7, 8, 9, 0, 0]
    assert packed["loss_weights"].tolist() == [0, 0, 1, 1, 0, 0]
    assert packed["position_ids"].tolist() == [0, 1, 2, 3, 0, 1]
    assert packed["segment_ids"].tolist() == [1, 1, 1, 1, 0, 0]
    assert packed["padding_mask"].tolist() == [False] * 4 + [True] * 2
    assert packed["loss_weights"].dtype == np.float32


def test_pretraining_has_loss_on_every_token(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "data", vocab_size=VOCAB) as writer:
        writer.add([3, 4, 5])
    packed = open_dataset(tmp_path / "data", objective="pretrain", seq_length=4).sequence(0, 0)
    assert packed["tokens"].tolist() == [3, 4, 0, 0]
    assert packed["loss_weights"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("packing", ["none", "greedy", "best_fit"])
def test_an_epoch_contains_each_sample_once_with_its_targets(
    tmp_path: Path, random_pairs: list[tuple[list[int], list[int]]], packing: str
) -> None:
    dataset = open_dataset(write_pairs(tmp_path / "data", random_pairs), packing=packing)
    seen = []
    for index in range(dataset.num_sequences(1)):
        packed = dataset.sequence(1, index)
        for segment, document in enumerate(dataset.samples_in_sequence(1, index).tolist(), start=1):
            where = packed["segment_ids"] == segment
            prompt, response = random_pairs[document]
            assert packed["tokens"][where].tolist() == [*prompt, *response][:-1]
            assert packed["labels"][where].tolist() == [*prompt, *response][1:]
            assert packed["labels"][where & (packed["loss_weights"] == 1)].tolist() == response
            assert packed["position_ids"][where].tolist() == list(range(where.sum()))
            seen.append(document)
        assert not packed["loss_weights"][packed["segment_ids"] == 0].any()
    assert sorted(seen) == list(range(len(random_pairs)))


@pytest.mark.parametrize("packing", ["none", "greedy"])
def test_locate_finds_the_sequences_of_all_epochs_in_any_order(
    tmp_path: Path, random_pairs: list[tuple[list[int], list[int]]], packing: str
) -> None:
    prefix = write_pairs(tmp_path / "data", random_pairs)
    dataset = open_dataset(prefix, packing=packing)
    expected = [(epoch, packed) for epoch in range(3) for packed in range(dataset.num_sequences(epoch))]
    assert [dataset.locate(i) for i in range(len(expected))] == expected
    assert open_dataset(prefix, packing=packing).locate(len(expected) - 1) == expected[-1]


def test_overlong_samples_are_dropped_truncated_or_an_error(tmp_path: Path) -> None:
    prefix = write_pairs(tmp_path / "data", [([1] * 4, [2] * 30), ([1] * 20, [2]), ([1], [2])])
    dropped = open_dataset(prefix)
    assert (dropped.counts["samples"], dropped.counts["overlong"], dropped.counts["no_target"]) == (1, 2, 0)
    cut = open_dataset(prefix, overlong="truncate")  # no token with loss is left of the second sample
    assert (cut.counts["samples"], cut.counts["overlong"], cut.counts["no_target"]) == (2, 2, 1)
    assert cut.counts["target_tokens"] == (SEQ_LENGTH - 3) + 1
    with pytest.raises(UserError, match=r"2 samples are longer \(document 0: 33 tokens\)"):
        open_dataset(prefix, overlong="error")


def test_a_sample_of_seq_length_tokens_fits(tmp_path: Path) -> None:
    prefix = write_pairs(tmp_path / "data", [([1] * 4, [2] * (SEQ_LENGTH - 3))])
    packed = open_dataset(prefix, overlong="error").sequence(0, 0)
    assert packed["labels"].tolist() == [1] * 3 + [2] * (SEQ_LENGTH - 3)


def test_empty_responses_are_not_samples(tmp_path: Path) -> None:
    prefix = write_pairs(tmp_path / "data", [([1, 2], []), ([1, 2], [3])])
    assert open_dataset(prefix).counts["no_target"] == 1


@pytest.mark.parametrize("packing", ["greedy", "best_fit"])
def test_samples_are_padded_to_a_multiple_without_loss_on_the_padding(
    tmp_path: Path, random_pairs: list[tuple[list[int], list[int]]], packing: str
) -> None:
    dataset = open_dataset(write_pairs(tmp_path / "data", random_pairs), packing=packing, segment_multiple=4)
    seen = []
    for index in range(dataset.num_sequences(0)):
        packed = dataset.sequence(0, index)
        assert dataset.sequence_weight(0, index) == packed["loss_weights"].sum()
        documents, lengths = (
            dataset.samples_in_sequence(0, index).tolist(),
            dataset.lengths_in_sequence(0, index).tolist(),
        )
        for segment, (document, length) in enumerate(zip(documents, lengths, strict=True), start=1):
            where = np.flatnonzero(packed["segment_ids"] == segment)
            prompt, response = random_pairs[document]
            assert len(where) % 4 == where[0] % 4 == 0
            assert len(where) - 4 < length == len(prompt) + len(response) - 1 <= len(where)
            assert packed["tokens"][where].tolist() == [*prompt, *response][:-1] + [0] * (len(where) - length)
            assert packed["position_ids"][where].tolist() == list(range(len(where)))
            assert packed["loss_weights"][where].sum() == len(response)
            seen.append(document)
    assert sorted(seen) == list(range(len(random_pairs)))


def test_a_sequence_of_one_sample_and_an_empty_sequence(
    tmp_path: Path, random_pairs: list[tuple[list[int], list[int]]]
) -> None:
    dataset = open_dataset(write_pairs(tmp_path / "data", random_pairs), packing="greedy")
    packed, alone = dataset.sequence(0, 0), dataset.single_sample_sequence(0, 0, 1, SEQ_LENGTH)
    where = packed["segment_ids"] == 2
    assert alone["tokens"][: where.sum()].tolist() == packed["tokens"][where].tolist()
    assert alone["segment_ids"].sum() == where.sum()
    assert alone["loss_weights"].sum() == packed["loss_weights"][where].sum()
    empty = dataset.joined([], 8)
    assert empty["tokens"].shape == (8,)
    assert empty["loss_weights"].sum() == empty["segment_ids"].sum() == 0


def test_samples_are_joined_to_a_sequence_of_any_length(
    tmp_path: Path, random_pairs: list[tuple[list[int], list[int]]]
) -> None:
    dataset = open_dataset(write_pairs(tmp_path / "data", random_pairs), packing="best_fit", batch_unit="samples")
    assert dataset.num_sequences(0) == len(random_pairs)
    parts = [(0, 3), (0, 5), (1, 2)]
    joined = dataset.joined(parts, 40)
    lengths = [dataset.padded_length(*at) for at in parts]
    assert np.bincount(joined["segment_ids"]).tolist() == [40 - sum(lengths), *lengths]
    alone = [dataset.sequence(*at) for at in parts]
    for column in ("tokens", "labels", "loss_weights", "position_ids"):
        expected = np.concatenate([each[column][:length] for each, length in zip(alone, lengths, strict=True)])
        assert joined[column][: sum(lengths)].tolist() == expected.tolist()


def test_held_out_documents_are_in_one_split_and_depend_only_on_the_seed(
    tmp_path: Path, random_pairs: list[tuple[list[int], list[int]]]
) -> None:
    prefix = write_pairs(tmp_path / "data", random_pairs)

    def documents(split: str, **changes: Any) -> set[int]:
        dataset = open_dataset(prefix, validation_fraction=0.2, split=split, **changes)
        assert dataset.counts["held_out"] == 8
        assert dataset.counts["documents"] == 40
        sequences = [dataset.samples_in_sequence(0, index).tolist() for index in range(dataset.num_sequences(0))]
        assert dataset.counts["samples"] == sum(map(len, sequences))
        return {document for sequence in sequences for document in sequence}

    train, validation = documents("train"), documents("validation")
    assert len(validation) == 8
    assert train | validation == set(range(40))
    assert not train & validation
    assert documents("validation", packing="best_fit") == validation
    assert documents("validation", seed=1) != validation
    short = documents("validation", seq_length=6)
    assert short < validation


def test_a_data_set_without_training_samples_is_named(tmp_path: Path) -> None:
    prefix = write_pairs(tmp_path / "data", [([1, 2], [3])])
    with pytest.raises(UserError, match=r"no sample is left.*validation_fraction"):
        open_dataset(prefix, validation_fraction=0.5)


def test_the_report_counts_overlong_samples(tmp_path: Path) -> None:
    prefix = write_pairs(tmp_path / "data", [([1] * 4, [2] * 30), ([1] * 4, [2] * 5), ([1] * 3, [2] * 4), ([1], [2])])
    report = open_dataset(prefix, packing="best_fit").packing_report()
    assert (report.samples, report.overlong, report.tokens, report.sequences) == (3, 1, 8 + 6 + 1, 1)
    assert report.efficiency == pytest.approx(15 / 16)
    assert report.padded_efficiency == pytest.approx(15 / 48)
    assert "one sample per sequence would waste 68.8%; 1 overlong" in str(report)


def test_the_largest_token_id(tmp_path: Path) -> None:
    assert open_dataset(write_pairs(tmp_path / "data", [([1, 99], [2])])).max_token_id() == 99


def test_a_wrong_objective_is_named(tmp_path: Path) -> None:
    prefix = write_pairs(tmp_path / "data", [([1], [2])])
    with pytest.raises(UserError, match=r"every document has 2 sequences.*set objective=sft"):
        open_dataset(prefix, objective="pretrain")


@pytest.mark.parametrize("vocab_size", [100, 150000])
@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_texts_and_sentences_that_megatron_lm_wrote_are_trained_on(
    tmp_path: Path, vocab_size: int, packing: str
) -> None:
    end = vocab_size - 1
    documents = [[[1, 2, 3, end]], [[4], [5, 6], [7, 8, end]], [[vocab_size - 2] * 5, [9, end]]]
    prefix = write_megatron_texts(tmp_path / "text_document", documents, vocab_size=vocab_size)
    dataset = open_dataset(prefix, objective="pretrain", packing=packing)
    seen = {}
    for index in range(dataset.num_sequences(0)):
        packed = dataset.sequence(0, index)
        for segment, document in enumerate(dataset.samples_in_sequence(0, index).tolist(), start=1):
            where = packed["segment_ids"] == segment
            assert (packed["loss_weights"][where] == 1).all()
            seen[document] = [*packed["tokens"][where].tolist(), packed["labels"][where][-1]]
    expected = [[id_ for sentence in sentences for id_ in sentence] for sentences in documents]
    assert [seen[document] for document in range(3)] == expected
    assert dataset.max_token_id() == end
    with pytest.raises(
        UserError, match=r"pairs of \[prompt, response\].*document 0 has 1 sequence.*objective=pretrain"
    ):
        open_dataset(prefix)
