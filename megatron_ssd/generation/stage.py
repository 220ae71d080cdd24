"""The sampling stage: run_dir/problems to run_dir/samples, drawn from the frozen model at the training temperature.

No response is run, judged or filtered here. Every planned sample has a row in the end; a prompt that cannot be run has
one that says why.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from megatron_ssd.artifacts.manifest import read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.generation import SamplingConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.generation.model_folder import ModelFolder, open_model
from megatron_ssd.generation.plan import plan_samples, request_of
from megatron_ssd.generation.recording import SECONDS_BETWEEN_NOTES, RowMaker
from megatron_ssd.generation.sampler import Completion
from megatron_ssd.generation.sampling import sample_all, sampling_hash
from megatron_ssd.generation.vllm_sampler import engine_facts, open_sampler
from megatron_ssd.generation.writer import SampleShards
from megatron_ssd.problems.stage import read_problems
from megatron_ssd.prompts.prompt import build_prompts, prompts_open_thinking
from megatron_ssd.prompts.render import template_hash
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem

log = logging.getLogger(__name__)


def samples_stage(config: RunConfig) -> Stage:
    """The stage as ``config`` identifies it: same problems, prompts, model, decoding and seed mean the same samples.

    Raises:
        UserError: a section that sampling needs is missing, the problems were not chosen yet, or there is no model.
    """
    return _stage(config, _model(config))


def run_generate(config: RunConfig) -> None:
    """Sample every training problem, or go on where an earlier start stopped.

    Raises:
        UserError: see ``samples_stage``; or an engine cannot start or dies.
    """
    model = _model(config)
    stage = _stage(config, model)
    if stage.is_current():
        return
    engine, sampling = engine_facts(), _sampling(config)
    work = stage.begin()
    problems = list(read_problems(Path(config.run_dir)))
    keys = [(problem.id, index) for problem in problems for index in range(sampling.num_samples)]
    opens_thinking = prompts_open_thinking(problems, config.prompt, ChatTokenizer(model.path))
    facts: dict[str, float] = {"prompt_opens_thinking": opens_thinking}
    with SampleShards(work, keys, rows_per_shard=config.generation.shard_rows) as shards:
        if len(shards.done) < len(keys):
            facts["tokens_per_second"] = _draw_missing(config, stage, problems, model, shards)
    _warn(shards)
    stage.publish(engine=engine, counts=dict(sorted(shards.counts.items())), facts=facts)


def _draw_missing(
    config: RunConfig, stage: Stage, problems: list[Problem], model: ModelFolder, shards: SampleShards
) -> float:
    """Sample what ``shards`` lack; returns tokens a second."""
    sampling = _sampling(config)
    with open_sampler(config, model) as sampler:  # loads while the prompts are made
        tokenizer = ChatTokenizer(model.path)
        tokenizer.check_fits(model.vocab_size)
        plan = plan_samples(
            build_prompts(problems, config.prompt, tokenizer),
            num_samples=sampling.num_samples,
            run_seed=config.seed,
            max_model_len=config.engine.max_model_len,
        )
        rows = RowMaker(tokenizer, model.revision, sampling_hash(sampling.train, sampling.max_tokens))
        done = shards.done
        missing = {sample.key: sample for sample in plan if sample.key not in done}
        for sample in missing.values():
            if sample.skip_reason:
                shards.write(rows.skipped(sample))
        requests = [
            request_of(sample, decoding=sampling.train, max_tokens=sampling.max_tokens)
            for sample in missing.values()
            if not sample.skip_reason
        ]

        def record(completion: Completion) -> None:
            shards.write(rows.finished(missing[completion.key], completion))  # type: ignore[index]
            stage.note_time(every=SECONDS_BETWEEN_NOTES)

        stats = sample_all(sampler, requests, record, done_before=len(plan) - len(requests))
    log.info("samples: drew %d tokens, %.0f a second", stats.tokens, stats.tokens_per_second)
    return round(stats.tokens_per_second, 1)


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
            "prompt": dataclasses.asdict(config.prompt),
            "engine": {"dtype": config.engine.dtype, "max_model_len": config.engine.max_model_len},
            "shard_rows": config.generation.shard_rows,
        },
        inputs={
            "model": model.revision,
            "problems": read_manifest(Path(config.run_dir) / "problems").content_hash,
            "template": template_hash(config.prompt),
        },
        replace=config.replace,
    )


def _sampling(config: RunConfig) -> SamplingConfig:
    return needed(config.sampling, "sampling", fix="name settings, for example sampling=qwen3_4b_instruct")


def _model(config: RunConfig) -> ModelFolder:
    model = needed(config.model, "model", fix="name one, for example +model=qwen3_4b_instruct")
    return open_model(model.path, model.revision)


def _warn(shards: SampleShards) -> None:
    """Say what a reader of the samples should know before training on them."""
    counts = shards.counts
    if counts["skipped"]:
        log.warning("samples: %d of %d prompts do not fit engine.max_model_len and have no response", counts["skipped"],
                    counts["samples"])  # fmt: skip
    if counts["length"]:
        log.warning("samples: %d of %d responses were cut at sampling.max_tokens or engine.max_model_len",
                    counts["length"], counts["samples"])  # fmt: skip
