"""A .bin and .idx that somebody else made, published as a run's data set: checked, copied, hashed, with a manifest.

Megatron-LM's ``tools/preprocess_data.py`` writes such pairs (``NAME_text_document.bin`` and ``.idx``): a text is a
document of one sequence, or of one a sentence, with its end token where ``--append-eod`` was given. They are for
``objective=pretrain``; ``sft`` takes documents of two sequences, [prompt, response].
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np

from megatron_ssd.artifacts.hashing import hash_json, remembered_sha256
from megatron_ssd.artifacts.manifest import megatron_facts
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.dataset.indexed import DATASET_NAME, check_text, read_indexed
from megatron_ssd.dataset.integrity import DatasetFiles, check_ids

log = logging.getLogger(__name__)

_ENDINGS = (".bin", ".idx")


def indexed_stage(run_dir: Path, source: Path, *, vocab_size: int, replace: bool = False) -> Stage:
    """The stage ``dataset`` that takes ``source``, a path without ending, unopened.

    Raises:
        UserError: a file is missing, or the two do not belong together.
    """
    read_indexed(source, fix="set preprocess.indexed to the path of a .bin and .idx, without ending")
    hashes = [remembered_sha256(Path(f"{source}{ending}")) for ending in _ENDINGS]
    return Stage(
        name="dataset",
        run_dir=run_dir,
        config={"vocab_size": vocab_size},
        inputs={"indexed": hash_json(hashes)},
        replace=replace,
    )


def import_indexed(stage: Stage, source: Path, *, vocab_size: int) -> None:
    """Do the work of ``indexed_stage``.

    Raises:
        UserError: the data set is empty or not of text, or an id is outside the vocabulary.
    """
    index = read_indexed(source)
    check_text(source, index)
    check_ids(DatasetFiles(source, index, None), vocab_size=vocab_size)
    work = stage.begin()
    for ending in _ENDINGS:
        shutil.copyfile(f"{source}{ending}", work / f"{DATASET_NAME}{ending}")
    counts = {"documents": index.num_documents, "tokens": int(index.lengths.sum(dtype=np.int64))}
    log.info("dataset: took %d documents of %d tokens from %s", *counts.values(), source)
    stage.publish(engine=megatron_facts(), counts=counts)
