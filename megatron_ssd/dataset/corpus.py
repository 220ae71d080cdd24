"""The small world's base data: a tokenizer and a corpus in Megatron's format, for ``objective=pretrain``.

One document of the corpus is one sequence: the statement and its answer in the chat template, up to and with the end
token, so that a base model sees at sampling time exactly what it saw in training. ``RUN_DIR/dataset`` is published by a
rename; ``RUN_DIR/tokenizer`` is made before it by the same rule and named in its inputs.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import sentencepiece

from megatron_ssd.artifacts.manifest import Manifest, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.minicode import MinicodeConfig
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.dataset.indexed import IndexedWriter
from megatron_ssd.errors import require
from megatron_ssd.problems.minicode.documents import corpus
from megatron_ssd.problems.minicode.tokenizer import chat_text, save_tokenizer, train_tokenizer
from megatron_ssd.progress import progress

log = logging.getLogger(__name__)

_TOKENIZER_DOCUMENTS = 4000  # of a world without slips: enough for every word of it


def build_world(config: RunConfig) -> None:
    """Write ``RUN_DIR/tokenizer`` and ``RUN_DIR/dataset`` for ``config.minicode``; nothing where both are current."""
    model = needed(config.model, "model", fix="add +model=tiny")
    require(
        model.vocab_size == config.minicode.vocab_size,
        f"minicode.vocab_size = {config.minicode.vocab_size}",
        rule=f"must be model.vocab_size ({model.vocab_size})",
        fix=f"set minicode.vocab_size={model.vocab_size}",
    )
    run_dir = Path(config.run_dir)
    tokenizer = _build_tokenizer(run_dir, config.minicode, model, replace=config.replace)
    _build_corpus(run_dir, config.minicode, tokenizer, replace=config.replace)


def _build_tokenizer(run_dir: Path, world: MinicodeConfig, model: ModelConfig, *, replace: bool) -> Manifest:
    decides = {"seed": world.seed, "vocab_size": world.vocab_size, "max_length": model.max_position_embeddings}
    stage = Stage(name="tokenizer", run_dir=run_dir, config=decides, inputs={}, replace=replace)
    if not stage.is_current():
        work = stage.begin()
        clean = dataclasses.replace(world, noise=0.0, num_documents=_TOKENIZER_DOCUMENTS)
        trained = train_tokenizer(corpus(clean), world.vocab_size)
        save_tokenizer(trained, work, max_length=model.max_position_embeddings)
        stage.publish(engine={"name": "sentencepiece", "version": sentencepiece.__version__})
    return read_manifest(run_dir / "tokenizer")


def _build_corpus(run_dir: Path, world: MinicodeConfig, tokenizer: Manifest, *, replace: bool) -> None:
    decides = dataclasses.asdict(world)
    inputs = {"tokenizer": tokenizer.content_hash}
    stage = Stage(name="dataset", run_dir=run_dir, config=decides, inputs=inputs, replace=replace)
    if stage.is_current():
        return
    work = stage.begin()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(run_dir / "tokenizer" / "tokenizer.model"))
    tokens = 0
    with IndexedWriter(work / "samples", vocab_size=world.vocab_size) as writer:
        documents = progress(corpus(world), total=world.num_documents, desc="writing the corpus", unit="document")
        for document in documents:
            ids = processor.encode(chat_text(document))
            writer.add(ids)
            tokens += len(ids)
    log.info("corpus: %d documents, %d tokens", world.num_documents, tokens)
    stage.publish(counts={"documents": world.num_documents, "tokens": tokens})
