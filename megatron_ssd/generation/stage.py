"""The sampling stage: run_dir/problems to run_dir/samples, drawn from the frozen model at the training temperature.

No response is run, judged or filtered here. Every planned sample has a row in the end; a prompt that cannot be run has
one that says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.hub import ModelFolder, open_model
from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.spans import SpanNotes, read_spans, seconds_covered
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.generation import SamplingConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.generation import worker_files
from megatron_ssd.generation.engine import Completion
from megatron_ssd.generation.engines import engine_facts, open_sampler
from megatron_ssd.generation.merge import merge
from megatron_ssd.generation.plan import plan_samples, request_of
from megatron_ssd.generation.recording import SECONDS_BETWEEN_NOTES, RowMaker
from megatron_ssd.generation.sample_index import SampleIndex
from megatron_ssd.generation.sampling import sample_all, sampling_hash
from megatron_ssd.problems.stage import read_problems
from megatron_ssd.process import forget_torchrun
from megatron_ssd.prompts.prompt import build_prompts, prompts_open_thinking
from megatron_ssd.prompts.render import template_hash
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem

log = logging.getLogger(__name__)

_AT_WORK, _SAMPLING = "at work", "sampling"  # what a worker's time goes into; sampling is without loading the model


def samples_stage(config: RunConfig) -> Stage:
    """The stage as ``config`` identifies it: same problems, prompts, model, decoding and seed mean the same samples.

    Raises:
        UserError: a section that sampling needs is missing, the problems were not chosen yet, or there is no model.
    """
    return _stage(config, _model(config))


def run_generate(config: RunConfig) -> None:
    """Sample this worker's part of the training problems, or go on where earlier workers stopped, and publish.

    Each worker appends to a file of its own; the one that finds every planned sample there publishes them all. A
    worker that ends before says what is missing.

    Raises:
        UserError: see ``samples_stage``; this worker or one of another world is at work; an engine cannot start or
            dies; or a row on disk is broken, not planned or there twice.
    """
    config = dataclasses.replace(config, worker=config.worker.settled(os.environ))
    model = _model(config)
    stage = _stage(config, model)
    forget_torchrun()  # engines are no ranks; and from here on each worker says itself what stops it
    with contextlib.ExitStack() as stack:
        with stage.lock():
            if stage.is_current():
                return
            stage.open_work(in_use=bool(worker_files.living(stage.work)))
            stack.enter_context(worker_files.seat(stage.work, config.worker))
            spans = SpanNotes(worker_files.span_file(stage.work, config.worker))
            spans.begin(_AT_WORK)
        engine = engine_facts(config)
        problems = list(read_problems(Path(config.run_dir)))
        index = _index(config, stage, problems)
        index.update()  # the bulk of it side by side with others, what they change meanwhile in turn
        with stage.lock():
            if stage.is_current():
                return
            index.update()
        _sample_part(config, problems[config.worker.share], model, index, spans)
        with stage.lock():
            if stage.is_current():  # all samples were there before this turn
                return
            spans.note()
            index.update()
            if index.num_missing == 0:
                _publish(stage, index, engine, opens_thinking=_opens_thinking(config, problems, model))
            else:
                message = (
                    "samples: %s: its part is done; %d samples are still missing; the last worker to end publishes"
                )
                log.info(message, config.worker.label, index.num_missing)


def _index(config: RunConfig, stage: Stage, problems: list[Problem]) -> SampleIndex:
    num_samples = _sampling(config).num_samples
    keys = [(problem.id, index) for problem in problems for index in range(num_samples)]
    return SampleIndex(stage.work, keys, rows_per_shard=config.generation.shard_rows)


def _sample_part(
    config: RunConfig, problems: list[Problem], model: ModelFolder, index: SampleIndex, spans: SpanNotes
) -> None:
    """Sample what ``index`` lacks of ``problems``. All samples of a problem are one worker's: they share its prefill.

    The last row that this worker writes may be the last of all. Another may publish from then on, and the work folder
    be gone, so nothing is written into it after that.
    """
    sampling = _sampling(config)
    num_planned = len(problems) * sampling.num_samples
    problems = [p for p in problems if any((p.id, number) not in index for number in range(sampling.num_samples))]
    if not problems:
        return
    with open_sampler(config, model) as sampler:  # loads while the prompts are made
        tokenizer = ChatTokenizer(model.path)
        tokenizer.check_fits(model.vocab_size)
        plan = plan_samples(
            build_prompts(problems, config.prompt, tokenizer),
            num_samples=sampling.num_samples,
            run_seed=config.seed,
            max_model_len=config.engine.max_model_len,
        )
        rows = RowMaker(
            tokenizer, model.revision, sampling_hash(sampling.train, sampling.max_tokens, sampling.stop_token_ids)
        )
        missing = {sample.key: sample for sample in plan if sample.key not in index}
        requests = [
            request_of(sample, decoding=sampling.train, max_tokens=sampling.max_tokens)
            for sample in missing.values()
            if not sample.skip_reason
        ]
        with JsonlWriter(worker_files.row_file(index.folder, config.worker)) as writer:

            def record(completion: Completion) -> None:
                spans.note(every=SECONDS_BETWEEN_NOTES)
                planned = missing.pop(completion.key)  # type: ignore[arg-type]
                writer.write(rows.finished(planned, completion).to_json())

            for sample in [sample for sample in missing.values() if sample.skip_reason]:
                writer.write(rows.skipped(missing.pop(sample.key)).to_json())
            if requests:
                sampler.wait_ready()
                spans.begin(_SAMPLING)
                desc = "sampling" if config.worker.is_alone else f"sampling, {config.worker.label}"
                done_before = num_planned - len(requests)
                stats = sample_all(sampler, requests, record, desc=desc, done_before=done_before)
                spans.end(_SAMPLING)
                log.info("samples: drew %d tokens, %.0f a second", stats.tokens, stats.tokens_per_second)


def _publish(stage: Stage, index: SampleIndex, engine: dict[str, str], *, opens_thinking: bool) -> None:
    """Merge the workers' files and publish, in the stage's turn."""
    notes = worker_files.span_files(stage.work)
    spans = read_spans(notes)
    hashes = merge(index)
    _warn(index.counts)
    facts: dict[str, Any] = {
        "prompt_opens_thinking": opens_thinking,  # whoever looks for code in a response has to know
        "worker_seconds": {  # add up to what the samples cost; the manifest's seconds are those in which anyone worked
            worker_files.name(path): round(seconds_covered(read_spans([path])[_AT_WORK]), 1) for path in notes
        },
    }
    if sampling_seconds := seconds_covered(spans.get(_SAMPLING, [])):
        facts["tokens_per_second"] = round(index.counts["response_tokens"] / sampling_seconds, 1)
    stage.publish(
        engine=engine,
        counts=dict(sorted(index.counts.items())),
        facts=facts,
        known_hashes=hashes,
        notes=notes,
        seconds=seconds_covered(spans[_AT_WORK]),
    )


def _opens_thinking(config: RunConfig, problems: list[Problem], model: ModelFolder) -> bool:
    return prompts_open_thinking(problems, config.prompt, ChatTokenizer(model.path))


def _stage(config: RunConfig, model: ModelFolder) -> Stage:
    sampling = _sampling(config)
    return Stage(
        name="samples",
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
        is_work=worker_files.is_work,
    )


def _sampling(config: RunConfig) -> SamplingConfig:
    return needed(config.sampling, "sampling", fix="name settings, for example sampling=qwen3_4b_instruct")


def _model(config: RunConfig) -> ModelFolder:
    model = needed(config.model, "model", fix="name one, for example model=qwen3_4b_instruct")
    return open_model(model.path, model.revision)


def _warn(counts: Counter[str]) -> None:
    """Say what a reader of the samples should know before training on them."""
    if counts["skipped"]:
        log.warning("samples: %d of %d prompts do not fit engine.max_model_len and have no response", counts["skipped"],
                    counts["samples"])  # fmt: skip
    if counts["length"]:
        log.warning("samples: %d of %d responses were cut at sampling.max_tokens or engine.max_model_len",
                    counts["length"], counts["samples"])  # fmt: skip
