"""The sampling stage: samples responses to run_dir/problems from the frozen model, in run_dir/samples.

No response is run, checked or filtered here. Every planned sample gets a record; if its prompt cannot be run, the
record says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.hub import ModelFolder, open_model
from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.samples import SAMPLES
from megatron_ssd.artifacts.spans import SpanNotes, read_spans, seconds_covered
from megatron_ssd.artifacts.stage import SECONDS_BETWEEN_NOTES, Stage
from megatron_ssd.config.generation import SamplingConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.generation.engine import Completion, Request, sample_all
from megatron_ssd.generation.plan import plan_requests, sample_of, sampling_hash
from megatron_ssd.generation.samplers import engine_facts, open_sampler
from megatron_ssd.generation.store import (
    AT_WORK,
    SampleStore,
    is_work,
    remove_worker_files,
    shard_plan,
    span_files,
    worker_at_work,
    worker_file,
    worker_files,
    worker_name,
)
from megatron_ssd.problems.stage import read_problems
from megatron_ssd.process import forget_launcher
from megatron_ssd.prompts.clock import RunClock
from megatron_ssd.prompts.prompt import build_prompts, prompts_open_thinking, template_hash
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem

log = logging.getLogger(__name__)

_SAMPLING = "sampling"  # the activity of a worker without loading the model


def samples_stage(config: RunConfig) -> Stage:
    """The stage as ``config`` identifies it: same problems, prompts, model, sampling and seed mean the same samples.

    Raises:
        UserError: a section that sampling needs is missing, the problems were not chosen yet, or there is no model.
    """
    return _stage(config, _model(config))


def run_generate(config: RunConfig) -> None:
    """Sample this worker's part of the training problems, or resume it, and publish.

    Each worker appends to a file of its own. The one that finds every planned sample in these files publishes them all;
    a worker that ends earlier logs how many are missing.

    Raises:
        UserError: see ``samples_stage``; this worker, or one of another ``worker.world``, is running; an engine cannot
            start or dies; or a record on disk is broken, not planned or repeated.
    """
    config = dataclasses.replace(config, worker=config.worker.resolved(os.environ))
    model, sampling, worker = _model(config), needed(config.sampling, "sampling"), config.worker
    stage = _stage(config, model)
    forget_launcher()  # engines are not ranks; and from here on each worker reports its own errors
    with contextlib.ExitStack() as stack:
        with stage.lock():
            if stage.is_current():
                return
            spans = stack.enter_context(worker_at_work(stage, worker))
        log.info("samples: sampling: %s", sampling.label)
        engine = engine_facts(config.engine)
        problems = list(read_problems(Path(config.run_dir)))
        store = _store(stage, problems, sampling.num_samples, config.generation.shard_rows)
        store.update()  # most of the work, without the lock; what other workers add meanwhile is read below
        with stage.lock():
            if stage.is_current():
                return
            store.update()
        _sample_part(config, sampling, model, problems[worker.share], store, stage.work, spans)
        with stage.lock():
            if stage.is_current():  # another worker found every sample and published
                return
            spans.note()
            store.update()
            if store.num_missing == 0:
                tokenizer = _tokenizer(model, Path(config.run_dir))
                facts = {
                    # later stages need it to find the program in a response
                    "prompt_opens_thinking": prompts_open_thinking(problems, config.prompt, tokenizer),
                    "end_token_ids": sorted({*model.end_token_ids, *sampling.stop_token_ids}),
                    **RunClock(Path(config.run_dir)).facts,
                }
                _publish(stage, store, engine, facts)
            else:
                log.info("samples: %s has finished its part; %d samples are still missing; the last worker to end "
                         "publishes", worker.label, store.num_missing)  # fmt: skip


def _store(stage: Stage, problems: list[Problem], num_samples: int, shard_rows: int) -> SampleStore:
    keys = [(problem.id, index) for problem in problems for index in range(num_samples)]
    return SampleStore(shard_plan(stage.work, keys, size=shard_rows), lambda: worker_files(stage.work))


def _sample_part(
    config: RunConfig,
    sampling: SamplingConfig,
    model: ModelFolder,
    problems: list[Problem],
    store: SampleStore,
    work: Path,
    spans: SpanNotes,
) -> None:
    """Sample the responses to ``problems`` that ``store`` does not have.

    All samples of a problem belong to one worker, since they share the prefill of its prompt.

    The last record that this worker writes may complete the samples. Another worker may then publish and remove the
    work folder, so nothing is written into it after that record.
    """
    num_planned = len(problems) * sampling.num_samples
    problems = [p for p in problems if any((p.id, index) not in store for index in range(sampling.num_samples))]
    if not problems:
        return
    with open_sampler(
        config.engine,
        model,
        device=config.cluster.device,
        stop_token_ids=sampling.stop_token_ids,
        worker=config.worker,
    ) as sampler:  # loads while the prompts are made
        tokenizer = _tokenizer(model, Path(config.run_dir))
        planned = plan_requests(
            build_prompts(problems, config.prompt, tokenizer),
            num_samples=sampling.num_samples,
            run_seed=config.seed,
            params=sampling.train,
            max_tokens=sampling.max_tokens,
            max_model_len=config.engine.max_model_len,
        )
        missing = [request for request in planned if request.key not in store]
        make_sample = functools.partial(
            sample_of,
            tokenizer=tokenizer,
            sampling_hash=sampling_hash(sampling.train, sampling.max_tokens, sampling.stop_token_ids),
            model_revision=model.revision,
        )
        with JsonlWriter(worker_file(work, config.worker)) as writer:

            def record(request: Request, completion: Completion | None) -> None:
                spans.note(every=SECONDS_BETWEEN_NOTES)
                writer.write(make_sample(request, completion).to_json())

            for request in missing:
                if request.skip_reason:
                    record(request, None)
            requests = [request for request in missing if not request.skip_reason]
            if requests:
                sampler.wait_ready()
                spans.begin(_SAMPLING)
                desc = "sampling" if config.worker.is_alone else f"sampling, {config.worker.label}"
                stats = sample_all(sampler, requests, record, desc=desc, done_before=num_planned - len(requests))
                spans.end(_SAMPLING)
                log.info("samples: sampled %d tokens, %.0f per second", stats.tokens, stats.tokens_per_second)


def _publish(stage: Stage, store: SampleStore, engine: dict[str, str], facts: dict[str, Any]) -> None:
    """Merge the workers' files and publish, while holding the stage's lock."""
    notes = span_files(stage.work)
    spans = read_spans(notes)
    hashes = store.merge()
    remove_worker_files(stage.work)
    counts = store.counts
    if counts["skipped"]:
        log.warning("samples: %d of %d prompts do not fit engine.max_model_len and have no response", counts["skipped"],
                    counts["samples"])  # fmt: skip
    if counts["length"]:
        log.warning("samples: %d of %d responses were cut at sampling.max_tokens or engine.max_model_len",
                    counts["length"], counts["samples"])  # fmt: skip
    facts |= {
        "worker_seconds": {  # their sum is the cost of the samples; the manifest's seconds count overlapping time once
            worker_name(path): round(seconds_covered(read_spans([path])[AT_WORK]), 1) for path in notes
        },
    }
    if sampling_seconds := seconds_covered(spans.get(_SAMPLING, [])):
        facts["tokens_per_second"] = round(counts["response_tokens"] / sampling_seconds, 1)
    stage.publish(
        engine=engine,
        counts=dict(sorted(counts.items())),
        facts=facts,
        known_hashes=hashes,
        notes=notes,
        seconds=seconds_covered(spans[AT_WORK]),
    )


def _stage(config: RunConfig, model: ModelFolder) -> Stage:
    sampling = needed(config.sampling, "sampling")
    return Stage(
        name=SAMPLES,
        run_dir=Path(config.run_dir),
        config={
            "seed": config.seed,
            "decoding": dataclasses.asdict(sampling.train),
            "max_tokens": sampling.max_tokens,
            "num_samples": sampling.num_samples,
            "stop_token_ids": list(sampling.stop_token_ids),
            "prompt": dataclasses.asdict(config.prompt),
            "engine": config.engine.identity,
            "shard_rows": config.generation.shard_rows,
        },
        inputs={
            "model": model.revision,
            "problems": read_manifest(Path(config.run_dir) / "problems").content_hash,
            "template": template_hash(config.prompt),
        },
        replace=config.replace,
        is_work=is_work,
    )


def _model(config: RunConfig) -> ModelFolder:
    model = needed(config.model, "model")
    return open_model(model.path, model.revision)


@functools.cache
def _tokenizer(model: ModelFolder, run_dir: Path) -> ChatTokenizer:
    """The model's tokenizer, loaded once per process."""
    tokenizer = ChatTokenizer(model.path, RunClock(run_dir))
    tokenizer.check_fits(model.vocab_size)
    tokenizer.check_ends(model.end_token_ids)
    return tokenizer
