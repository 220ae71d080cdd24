"""The preprocessing stage: run_dir/samples to run_dir/dataset.

Each shard of samples becomes a part of its own (``dataset.parts``), several at a time, and the parts are joined in the
order of the shards. A killed run redoes the shards that it was in and nothing else, and the bytes are the same whoever
wrote which part. Ids are taken exactly as sampled and no end token is added, unless ``preprocess.ids = retokenized``.
A data set that is there already may take the place of samples (``preprocess.indexed``, ``dataset.external``).

Output:
- ``samples.bin``, ``samples.idx``: one document a kept sample, [prompt, response];
- ``ids.jsonl``: line i names the sample of document i;
- ``differences.jsonl``: where responses tokenized again are not what was sampled, if that was asked for;
- ``counts.json``: what became of the samples, shard by shard.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.hub import locate_model
from megatron_ssd.artifacts.manifest import Manifest, format_counts, megatron_facts
from megatron_ssd.artifacts.samples import sample_shards, samples_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.dataset.complete import check_complete
from megatron_ssd.dataset.external import import_indexed, indexed_stage
from megatron_ssd.dataset.first_pass import settle_rows
from megatron_ssd.dataset.indexed import DATASET_NAME, join_indexed, prefix_of
from megatron_ssd.dataset.parts import DIFFERENCES, IDS, PartWriter, part_counts, part_file
from megatron_ssd.dataset.retokenize import Retokenizer
from megatron_ssd.dataset.scores import read_scores, scores_manifest
from megatron_ssd.dataset.screening import DROPPED, Screen
from megatron_ssd.dataset.workers import run_tasks, usable_cores
from megatron_ssd.errors import UserError
from megatron_ssd.progress import progress
from megatron_ssd.prompts.tokenizer import fast_tokenizer, tokenizer_hash
from megatron_ssd.schema import Sample

log = logging.getLogger(__name__)

_BYTES_WORTH_A_WORKER = 32 << 20  # one process reads these in about the time that starting another takes


def run_preprocess(config: RunConfig) -> None:
    """Filter the samples of ``config.run_dir`` and write them as Megatron's indexed data set.

    Raises:
        UserError: there are no samples, a line is no sample, an id is outside the model's vocabulary, a sample comes
            twice, samples were lost or added since they were published, every sample was dropped, or a tokenizer is
            asked for and there is none.
    """
    stage = dataset_stage(config)
    if stage.is_current():
        return
    if config.preprocess.indexed is not None:
        import_indexed(stage, prefix_of(config.preprocess.indexed), vocab_size=_model(config).vocab_size)
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
        log.info("dataset: %.1f %% of %d responses hold no extractable code; %d were cut at the length cap, %d of them "
                 "in a loop", 100 * counts["no_code"] / counts["responses"], counts["responses"],
                 counts["length_capped"], counts["looping"])  # fmt: skip
    if config.preprocess.needs_tokenizer:
        log.info("dataset: tokenized again, %d of %d responses differ from what was sampled, in %d tokens: %s",
                 counts["differing_samples"], counts["documents"], counts["differing_tokens"], DIFFERENCES)  # fmt: skip
    stage.publish(engine=megatron_facts(), counts=counts, dropped=dropped)


def dataset_stage(config: RunConfig) -> Stage:
    """The stage as ``config`` identifies it: same samples, filters and ids mean the same data set.

    Raises:
        UserError: no model is named, there are no samples, or a tokenizer or scores are asked for and there are none.
    """
    run_dir = Path(config.run_dir)
    if config.preprocess.indexed is not None:
        source, vocab_size = prefix_of(config.preprocess.indexed), _model(config).vocab_size
        return indexed_stage(run_dir, source, vocab_size=vocab_size, replace=config.replace)
    settings = {"ids": config.preprocess.ids, "compare": config.preprocess.compare}
    inputs = {"samples": samples_manifest(run_dir).content_hash}
    if config.filters.proxy_band:
        inputs["scores"] = scores_manifest(run_dir).content_hash
    if config.preprocess.needs_tokenizer:
        inputs["model_tokenizer"] = tokenizer_hash(_model_folder(config))
    return Stage(
        name="dataset",
        run_dir=run_dir,
        config={
            "filters": dataclasses.asdict(config.filters),
            "preprocess": settings,
            "vocab_size": _model(config).vocab_size,
        },
        inputs=inputs,
        replace=config.replace,
    )


def _model(config: RunConfig) -> ModelConfig:
    return needed(config.model, "model", fix="choose one: model=NAME")


def _model_folder(config: RunConfig) -> Path:
    model = _model(config)
    folder, _ = locate_model(model.path, model.revision)
    return folder


def _write_parts(config: RunConfig, stage: Stage, parts: Path, shards: list[Path], samples: Manifest) -> None:
    """Write the part of every shard that an earlier start has not finished."""
    counts = {shard: part_counts(parts, shard) for shard in shards}
    unfinished = [shard for shard in shards if counts[shard] is None]
    if not unfinished:
        return
    retokenizer = None
    if config.preprocess.needs_tokenizer:
        retokenizer = Retokenizer(fast_tokenizer(_model_folder(config)).to_str())
    size, total = sum(shard.stat().st_size for shard in unfinished), samples.counts.get("samples")
    num_workers = config.preprocess.num_workers or min(usable_cores(), 1 + size // _BYTES_WORTH_A_WORKER)
    screen = Screen(
        filters=config.filters,
        prompt_opens_thinking=bool(samples.facts.get("prompt_opens_thinking")),
        scores=read_scores(Path(config.run_dir)) if config.filters.proxy_band else None,
    )
    vocab_size = _model(config).vocab_size
    writer = PartWriter(
        parts=parts,
        screen=dataclasses.replace(screen, scores=None),  # of the first pass alone
        settled=settle_rows(screen, parts, shards, vocab_size=vocab_size, num_workers=num_workers, total=total),
        vocab_size=vocab_size,
        retokenizer=retokenizer,
        takes_retokenized=config.preprocess.ids == "retokenized",
    )
    done = sum(found["samples"] for found in counts.values() if found is not None)
    bar: tqdm[Sample] = progress(total=total, initial=done, desc="preprocessing", unit="sample")
    with bar:
        for _ in run_tasks(writer.write, unfinished, num_workers=num_workers, count_rows=bar.update):
            stage.note_time()


def _join(config: RunConfig, parts: Path, shards: list[Path], joined: Path) -> None:
    """Put the parts together in the order of the shards; ``joined``, with the counts of each, is written last."""
    by_shard = {shard.stem: part_counts(parts, shard) or {} for shard in shards}
    if not any(counts["documents"] for counts in by_shard.values()):
        raise UserError(
            f"samples of {shards[0].parent if shards else config.run_dir}",
            rule=f"the filters drop every one of them: {format_counts(_totals(by_shard)[1])}",
            fix="look at the samples, or relax the filters section",
        )
    join_indexed([part_file(parts, shard, "") for shard in shards], joined.parent / DATASET_NAME)
    for name in (IDS, DIFFERENCES) if config.preprocess.needs_tokenizer else (IDS,):
        with (joined.parent / name).open("wb") as whole:
            for shard in shards:
                with part_file(parts, shard, f".{name}").open("rb") as part:
                    shutil.copyfileobj(part, whole)
    write_atomically(joined, json.dumps(by_shard, indent=2) + "\n")


def _totals(by_shard: dict[str, dict[str, int]]) -> tuple[dict[str, int], dict[str, int]]:
    """Sums over the shards: what was kept, and what was dropped by reason."""
    total: Counter[str] = Counter()
    for counts in by_shard.values():
        total.update(counts)
    dropped = {key.removeprefix(DROPPED): count for key, count in total.items() if key.startswith(DROPPED)}
    return {key: count for key, count in total.items() if not key.startswith(DROPPED)}, dropped
