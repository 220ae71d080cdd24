"""The preprocessing stage: converts run_dir/samples to run_dir/dataset.

Each shard of samples becomes a part (``dataset.convert``), several at a time, and the parts are joined in the order of
the shards. A killed run redoes unfinished shards only, and the bytes do not depend on the number of workers. Ids are
used exactly as sampled and no end token is added, unless ``preprocess.ids = retokenized``.

An existing .bin and .idx can replace the samples (``preprocess.indexed``), for ``objective=pretrain``. Megatron-LM's
``tools/preprocess_data.py`` writes such pairs (``NAME_text_document.bin`` and ``.idx``): a text is a document of one
sequence, or of one sequence per sentence, with an end token if ``--append-eod`` was given.

Output:
- ``samples.bin``, ``samples.idx``: one document per kept sample, [prompt, response];
- ``ids.jsonl``: line i names the sample of document i;
- ``differences.jsonl``: where retokenized responses differ from the sampled ids, if responses are tokenized again;
- ``counts.json``: how many samples were kept and dropped, per shard.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.hashing import hash_json, remembered_sha256
from megatron_ssd.artifacts.hub import locate_model
from megatron_ssd.artifacts.manifest import Manifest, format_counts, megatron_facts
from megatron_ssd.artifacts.samples import iter_samples, sample_shards, samples_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.dataset.convert import DIFFERENCES, IDS, KEYS, Converter, part_counts
from megatron_ssd.dataset.filters import DROPPED
from megatron_ssd.dataset.indexed import DATASET_NAME, check_ids, check_text, join_indexed, prefix_of, read_indexed
from megatron_ssd.dataset.set_filters import HASH, FirstPass, needs_first_pass, part_file, read_scores, scores_manifest
from megatron_ssd.dataset.workers import run_tasks
from megatron_ssd.errors import UserError
from megatron_ssd.progress import progress
from megatron_ssd.prompts.tokenizer import fast_tokenizer, tokenizer_hash
from megatron_ssd.schema import Sample

log = logging.getLogger(__name__)

_BYTES_PER_WORKER = 32 << 20  # reading these takes about as long as starting another process
_SUFFIXES = (".bin", ".idx")


def run_preprocess(config: RunConfig) -> None:
    """Filter the samples of ``config.run_dir`` and write them as Megatron's indexed data set.

    Raises:
        UserError: there are no samples, a line is not a sample, an id is outside the model's vocabulary, a sample is
            repeated, samples were lost or added since they were published, every sample was dropped, or there is no
            tokenizer and one is needed.
    """
    stage = dataset_stage(config)
    if stage.is_current():
        return
    if config.preprocess.indexed is not None:
        model = needed(config.model, "model")
        _import_indexed(stage, prefix_of(config.preprocess.indexed), vocab_size=model.vocab_size)
        return
    samples, shards = samples_manifest(Path(config.run_dir)), sample_shards(Path(config.run_dir))
    work = stage.begin()
    parts, joined = work / "parts", work / "counts.json"
    if not joined.exists():
        parts.mkdir(exist_ok=True)
        _write_parts(config, stage, parts, shards, samples)
        check_complete(parts, shards, samples)
        _join(config, parts, shards, joined)
    shutil.rmtree(parts, ignore_errors=True)
    counts, dropped = _totals(json.loads(joined.read_text(encoding="utf-8")))
    log.info(
        "dataset: kept %d of %d samples, dropped %s", counts["documents"], counts["samples"], format_counts(dropped)
    )
    if counts["responses"]:
        log.info("dataset: %.1f %% of the %d sampled responses contain no program that can be extracted; %d were cut "
                 "at the length limit, %d of these while they repeated themselves",
                 100 * counts["no_code"] / counts["responses"], counts["responses"], counts["length_capped"],
                 counts["looping"])  # fmt: skip
    if config.preprocess.needs_tokenizer:
        log.info("dataset: retokenized, %d of %d responses differ from what was sampled, in %d tokens: %s",
                 counts["differing_samples"], counts["documents"], counts["differing_tokens"], DIFFERENCES)  # fmt: skip
    stage.publish(engine=megatron_facts(), counts=counts, dropped=dropped)


def dataset_stage(config: RunConfig) -> Stage:
    """The stage of ``config``: the same samples, filters and ids make the same data set.

    Raises:
        UserError: no model is named; there are no samples, tokenizer or scores and they are needed; or
            ``preprocess.indexed`` does not name a .bin and .idx that belong together.
    """
    run_dir = Path(config.run_dir)
    if config.preprocess.indexed is not None:
        source = prefix_of(config.preprocess.indexed)
        read_indexed(source, fix="set preprocess.indexed to the path of a .bin and .idx, without suffix")
        hashes = [remembered_sha256(Path(f"{source}{suffix}")) for suffix in _SUFFIXES]
        return Stage(
            name="dataset",
            run_dir=run_dir,
            config={"vocab_size": needed(config.model, "model").vocab_size},
            inputs={"indexed": hash_json(hashes)},
            replace=config.replace,
        )
    filters = dataclasses.asdict(config.filters)
    if config.filters.length_capped != "mask_end":
        del filters["mask_end_tokens"]
    settings = {"ids": config.preprocess.ids, "compare": config.preprocess.compare}
    inputs = {"samples": samples_manifest(run_dir).content_hash}
    if config.filters.proxy_band:
        inputs["scores"] = scores_manifest(run_dir).content_hash
    if config.preprocess.needs_tokenizer:
        inputs["model_tokenizer"] = tokenizer_hash(_model_folder(config))
    return Stage(
        name="dataset",
        run_dir=run_dir,
        config={"filters": filters, "preprocess": settings, "vocab_size": needed(config.model, "model").vocab_size},
        inputs=inputs,
        unused=() if "mask_end_tokens" in filters else ("filters.mask_end_tokens",),
        replace=config.replace,
    )


def _import_indexed(stage: Stage, source: Path, *, vocab_size: int) -> None:
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


def _model_folder(config: RunConfig) -> Path:
    model = needed(config.model, "model")
    folder, _ = locate_model(model.path, model.revision)
    return folder


def _write_parts(config: RunConfig, stage: Stage, parts: Path, shards: list[Path], samples: Manifest) -> None:
    """Write the part of every shard that an earlier start has not finished."""
    counts = {shard: part_counts(parts, shard) for shard in shards}
    unfinished = [shard for shard in shards if counts[shard] is None]
    if not unfinished:
        return
    size, total = sum(shard.stat().st_size for shard in unfinished), samples.counts.get("samples")
    num_workers = config.preprocess.num_workers or min(len(os.sched_getaffinity(0)), 1 + size // _BYTES_PER_WORKER)
    settings: dict[str, Any] = {
        "parts": parts,
        "filters": config.filters,
        "vocab_size": needed(config.model, "model").vocab_size,
        "prompt_opens_thinking": bool(samples.facts.get("prompt_opens_thinking")),
    }
    needs_tokenizer = config.preprocess.needs_tokenizer
    tokenizer_json = fast_tokenizer(_model_folder(config)).to_str() if needs_tokenizer else None
    reasons = {}
    if needs_first_pass(config.filters):
        scores = read_scores(Path(config.run_dir)) if config.filters.proxy_band else None
        reasons = FirstPass(**settings, scores=scores).run(shards, num_workers=num_workers, total=total)
    uses_retokenized = config.preprocess.ids == "retokenized"
    converter = Converter(**settings, reasons=reasons, tokenizer_json=tokenizer_json, uses_retokenized=uses_retokenized)
    done = sum(found["samples"] for found in counts.values() if found is not None)
    bar: tqdm[Sample] = progress(total=total, initial=done, desc="preprocessing", unit="sample")
    with bar:
        for _ in run_tasks(converter.write, unfinished, num_workers=num_workers, count_samples=bar.update):
            stage.note_time()


def _join(config: RunConfig, parts: Path, shards: list[Path], joined: Path) -> None:
    """Join the parts in the order of the shards; ``joined``, with the counts of each shard, is written last."""
    by_shard = {shard.stem: part_counts(parts, shard) or {} for shard in shards}
    if not any(counts["documents"] for counts in by_shard.values()):
        raise UserError(
            f"samples of {shards[0].parent if shards else config.run_dir}",
            rule=f"the filters drop all of them: {format_counts(_totals(by_shard)[1])}",
            fix="look at the samples, or relax the filters section",
        )
    join_indexed([part_file(parts, shard, "") for shard in shards], joined.parent / DATASET_NAME)
    for name in (IDS, DIFFERENCES) if config.preprocess.needs_tokenizer else (IDS,):
        with (joined.parent / name).open("wb") as file:
            for shard in shards:
                with part_file(parts, shard, f".{name}").open("rb") as part:
                    shutil.copyfileobj(part, file)
    write_atomically(joined, json.dumps(by_shard, indent=2) + "\n")


def _totals(by_shard: dict[str, dict[str, int]]) -> tuple[dict[str, int], dict[str, int]]:
    """Sums over the shards: the counts, and what was dropped by reason."""
    total: Counter[str] = Counter()
    for counts in by_shard.values():
        total.update(counts)
    dropped = {key.removeprefix(DROPPED): count for key, count in total.items() if key.startswith(DROPPED)}
    return {key: count for key, count in total.items() if not key.startswith(DROPPED)}, dropped


def check_complete(parts: Path, shards: list[Path], samples: Manifest) -> None:
    """Check that the converted shards contain every published sample exactly once.

    The keys files, eight bytes per sample, are sorted together to find repeats. Samples with equal digests are read
    again and compared, so that a collision is not an error. The hash of each shard, computed while it was read, is
    compared with the manifest.

    Args:
        parts: the folder of the parts; removed on an error, because the samples have to be corrected first.
        shards: in the order of the data set.
        samples: the manifest of the samples.

    Raises:
        UserError: there are more or fewer samples than the manifest counts, a sample is repeated, or a shard is not the
            published one.
    """
    keys = [np.load(part_file(parts, shard, KEYS), mmap_mode="r") for shard in shards]
    error = _repeated(shards, keys) or _miscounted(shards, keys, samples) or _altered(parts, shards, samples)
    if error is not None:
        shutil.rmtree(parts)
        raise error


def _miscounted(shards: list[Path], keys: list[NDArray[np.uint64]], samples: Manifest) -> UserError | None:
    found, folder = sum(map(len, keys)), shards[0].parent
    published = samples.counts.get("samples")
    if found == published:
        return None
    if published is None:
        return UserError(f"samples of {folder}", rule=f"are {found}, and their manifest does not count them",
                         fix=f"remove {folder} and sample again")  # fmt: skip
    sizes = {output["path"]: output["bytes"] for output in samples.outputs}
    changed = [
        f"; {shard.name} has {len(digests)} of them in {size} bytes, and {sizes[shard.name]} bytes were published"
        for shard, digests in zip(shards, keys, strict=True)
        if (size := shard.stat().st_size) != sizes.get(shard.name, size)
    ]
    return UserError(
        f"samples of {folder}",
        rule=f"are {found}, and {published} were published{''.join(changed[:1])}",
        fix=f"put the files back as they were, or remove {folder} and sample again",
    )


def _altered(parts: Path, shards: list[Path], samples: Manifest) -> UserError | None:
    """The error for the first shard whose bytes differ from the published ones; None if there is none."""
    published = {output["path"]: output["sha256"] for output in samples.outputs}
    for shard in shards:
        if part_file(parts, shard, HASH).read_text(encoding="ascii") != published[shard.name]:
            return UserError(
                f"file {shard}",
                rule="is not what was published: its SHA-256 differs from the manifest's",
                fix=f"put it back as it was, or remove {shard.parent} and sample again",
            )
    return None


def _repeated(shards: list[Path], keys: list[NDArray[np.uint64]]) -> UserError | None:
    """The error for the first sample with the key of an earlier one; None if there is none."""
    together = np.concatenate(keys)
    together.sort()
    repeated = np.unique(together[1:][together[1:] == together[:-1]])
    if not len(repeated):
        return None
    lines: dict[tuple[str, int], str] = {}
    for shard, digests in zip(shards, keys, strict=True):
        suspects = set(np.flatnonzero(np.isin(digests, repeated)).tolist())
        for index, sample in enumerate(iter_samples(shard)) if suspects else ():
            if index not in suspects:
                continue
            line = f"{shard}:{index + 1}"
            if sample.key in lines:
                return UserError(
                    f"{line} with sample {sample.sample_index} of problem {sample.problem_id!r}",
                    rule=f"repeats {lines[sample.key]}",
                    fix=f"fix the line that is wrong, or remove {shard.parent} and sample again",
                )
            lines[sample.key] = line
    return None
