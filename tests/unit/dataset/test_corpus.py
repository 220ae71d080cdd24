"""Tests the tokenizer and the corpus of minicode's base model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import sentencepiece

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import TrainingConfig
from megatron_ssd.dataset.corpus import build_world
from megatron_ssd.dataset.indexed import open_indexed
from megatron_ssd.errors import UserError
from megatron_ssd.problems import minicode
from megatron_ssd.problems.minicode.tokenizer import END, chat_text

MODEL = ModelConfig(
    name="small", model_type="qwen3", hidden_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
    head_dim=16, intermediate_size=16, vocab_size=512, max_position_embeddings=256,
)  # fmt: skip


def _config(run_dir: Path) -> RunConfig:
    world = MinicodeConfig(seed=1, num_documents=200)
    return RunConfig(run_dir=str(run_dir), model=MODEL, minicode=world, training=TrainingConfig(seq_length=256))


def test_the_corpus_contains_the_documents_as_chats(tmp_path: Path) -> None:
    config = _config(tmp_path)
    build_world(config)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer" / "tokenizer.model"))
    dataset = open_indexed(tmp_path / "dataset" / "samples")
    documents = list(minicode.corpus(config.minicode))
    assert len(dataset) == len(dataset.document_indices) - 1 == 200
    for index, document in enumerate(documents):
        ids = dataset[index].tolist()
        assert processor.decode(ids) == chat_text(document)
        assert ids[-1] == processor.piece_to_id(END)
    assert read_manifest(tmp_path / "dataset").counts["tokens"] == int(dataset.sequence_lengths.sum())


def test_a_second_build_does_nothing(tmp_path: Path) -> None:
    build_world(_config(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    build_world(_config(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_vocabulary_must_have_the_models_size(tmp_path: Path) -> None:
    config = dataclasses.replace(_config(tmp_path), model=dataclasses.replace(MODEL, vocab_size=640))
    with pytest.raises(UserError, match=r"minicode\.vocab_size = 512: must be model\.vocab_size \(640\)"):
        build_world(config)
