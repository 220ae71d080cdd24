"""Builds minicode's pretraining corpus in Megatron's format, with its tokenizer, for ``objective=pretrain``.

A document of the corpus is one sequence: a statement and its answer in the chat template, including the end token, so
that the base model is sampled in exactly the format that it was trained on. ``RUN_DIR/tokenizer`` and
``RUN_DIR/dataset`` are two stages; the tokenizer is an input of the data set.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import sentencepiece

from megatron_ssd.artifacts.manifest import megatron_facts, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.dataset.indexed import DATASET_NAME, IndexedWriter
from megatron_ssd.errors import require
from megatron_ssd.problems.minicode.documents import corpus
from megatron_ssd.problems.minicode.tokenizer import chat_text, save_tokenizer, train_tokenizer
from megatron_ssd.progress import progress

log = logging.getLogger(__name__)

_TOKENIZER_DOCUMENTS = 4000  # without noise: enough to contain every word


def build_world(config: RunConfig) -> None:
    """Write ``RUN_DIR/tokenizer`` and ``RUN_DIR/dataset`` for ``config.minicode``, unless they are current."""
    model, world = needed(config.model, "model"), config.minicode
    require(
        model.vocab_size == world.vocab_size,
        f"minicode.vocab_size = {world.vocab_size}",
        rule=f"must be model.vocab_size ({model.vocab_size})",
        fix=f"set minicode.vocab_size={model.vocab_size}",
    )
    stage = _tokenizer_stage(config, model)
    if not stage.is_current():
        work = stage.begin()
        clean = dataclasses.replace(world, noise=0.0, num_documents=_TOKENIZER_DOCUMENTS)
        trained = train_tokenizer(corpus(clean), world.vocab_size)
        save_tokenizer(trained, work, max_length=model.max_position_embeddings)
        stage.publish(engine={"name": "sentencepiece", "version": sentencepiece.__version__})
    stage = _corpus_stage(config)
    if not stage.is_current():
        work = stage.begin()
        tokenizer = Path(config.run_dir) / "tokenizer" / "tokenizer.model"
        processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
        tokens = 0
        with IndexedWriter(work / DATASET_NAME, vocab_size=world.vocab_size) as writer:
            documents = progress(corpus(world), total=world.num_documents, desc="writing the corpus", unit="document")
            for document in documents:
                ids = processor.encode(chat_text(document))
                writer.add(ids)
                tokens += len(ids)
        log.info("corpus: %d documents, %d tokens", world.num_documents, tokens)
        counts = {"documents": world.num_documents, "tokens": tokens}
        stage.publish(engine=megatron_facts(), counts=counts)


def world_stage(config: RunConfig) -> Stage:
    """The first stage that is not current, or the last one."""
    tokenizer = _tokenizer_stage(config, needed(config.model, "model"))
    return _corpus_stage(config) if tokenizer.is_current() else tokenizer


def _tokenizer_stage(config: RunConfig, model: ModelConfig) -> Stage:
    world = config.minicode
    settings = {"seed": world.seed, "vocab_size": world.vocab_size, "max_length": model.max_position_embeddings}
    return Stage(name="tokenizer", run_dir=Path(config.run_dir), config=settings, inputs={}, replace=config.replace)


def _corpus_stage(config: RunConfig) -> Stage:
    run_dir = Path(config.run_dir)
    return Stage(
        name="dataset",
        run_dir=run_dir,
        config=config.minicode.of_corpus(),
        inputs={"tokenizer": read_manifest(run_dir / "tokenizer").content_hash},
        unused=("num_train_problems", "num_test_problems", "tests_per_problem"),
        replace=config.replace,
    )
