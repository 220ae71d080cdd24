"""Publishes an existing .bin and .idx as the data set of a run.

Megatron-LM's ``tools/preprocess_data.py`` writes such pairs (``NAME_text_document.bin`` and ``.idx``): a text is a
document of one sequence, or of one sequence per sentence, with an end token if ``--append-eod`` was given. They are for
``objective=pretrain``; ``sft`` needs documents of two sequences, [prompt, response].
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np

from megatron_ssd.artifacts.hashing import hash_json, remembered_sha256
from megatron_ssd.artifacts.manifest import megatron_facts
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.dataset.indexed import DATASET_NAME, check_ids, check_text, read_indexed

log = logging.getLogger(__name__)

_SUFFIXES = (".bin", ".idx")


def indexed_stage(run_dir: Path, source: Path, *, vocab_size: int, replace: bool = False) -> Stage:
    """The stage ``dataset`` that publishes ``source``, a path without suffix.

    Raises:
        UserError: a file is missing, or the two do not belong together.
    """
    read_indexed(source, fix="set preprocess.indexed to the path of a .bin and .idx, without suffix")
    hashes = [remembered_sha256(Path(f"{source}{suffix}")) for suffix in _SUFFIXES]
    return Stage(
        name="dataset",
        run_dir=run_dir,
        config={"vocab_size": vocab_size},
        inputs={"indexed": hash_json(hashes)},
        replace=replace,
    )


def import_indexed(stage: Stage, source: Path, *, vocab_size: int) -> None:
    """Check, copy and publish ``source`` as ``stage``.

    Raises:
        UserError: the data set is empty or not text only, or an id is outside the vocabulary.
    """
    index = read_indexed(source)
    check_text(source, index)
    check_ids(source, index, vocab_size=vocab_size)
    work = stage.begin()
    for suffix in _SUFFIXES:
        shutil.copyfile(f"{source}{suffix}", work / f"{DATASET_NAME}{suffix}")
    counts = {"documents": index.num_documents, "tokens": int(index.lengths.sum(dtype=np.int64))}
    log.info("dataset: copied %d documents of %d tokens from %s", *counts.values(), source)
    stage.publish(engine=megatron_facts(), counts=counts)
