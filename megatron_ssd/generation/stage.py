"""The sampling stage: problems to run_dir/samples, drawn from the frozen model at the training temperature.

No response is run, judged or filtered here. Every planned sample has a row in the end; a prompt that cannot be run has
one that says why.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.generation import SamplingConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.generation.model_folder import ModelFolder, open_model
from megatron_ssd.generation.plan import PlannedSample, plan_samples, request_of
from megatron_ssd.generation.sampler import Completion
from megatron_ssd.generation.sampling import sample_all, sampling_hash
from megatron_ssd.generation.vllm_sampler import engine_facts, open_sampler
from megatron_ssd.generation.writer import SampleShards
from megatron_ssd.problems.source import ProblemSet, load_problem_set
from megatron_ssd.prompts.prompt import build_prompts
from megatron_ssd.prompts.render import template_hash
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Sample

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_NOTES = 5.0


def samples_stage(config: RunConfig) -> Stage:
    """The stage as ``config`` identifies it: same problems, prompts, model, decoding and seed mean the same samples.

    Raises:
        UserError: a section that sampling needs is missing, or problems or model cannot be read.
    """
    return _stage(config, load_problem_set(config), _model(config))


def run_generate(config: RunConfig) -> None:
    """Sample every training problem, or go on where an earlier start stopped.

    Raises:
        UserError: see ``samples_stage``; or an engine cannot start or dies.
    """
    problems, model = load_problem_set(config), _model(config)
    stage = _stage(config, problems, model)
    if stage.is_current():
        return
    engine, sampling = engine_facts(), _sampling(config)
    work = stage.begin()
    keys = [(problem.id, index) for problem in problems.problems for index in range(sampling.num_samples)]
    facts: dict[str, float] = {}
    with SampleShards(work, keys, rows_per_shard=config.generation.shard_rows) as shards:
        if len(shards.done) < len(keys):
            facts["tokens_per_second"] = _draw_missing(config, stage, problems, model, shards)
    _warn(shards)
    stage.publish(engine=engine, counts=dict(sorted(shards.counts.items())), dropped=problems.dropped, facts=facts)


def _draw_missing(
    config: RunConfig, stage: Stage, problems: ProblemSet, model: ModelFolder, shards: SampleShards
) -> float:
    """Sample what ``shards`` lack; returns tokens a second."""
    sampling = _sampling(config)
    with open_sampler(config, model) as sampler:  # loads while the prompts are made
        tokenizer = ChatTokenizer(model.path)
        tokenizer.check_fits(model.vocab_size)
        plan = plan_samples(
            build_prompts(problems.problems, config.prompt, tokenizer),
            num_samples=sampling.num_samples,
            run_seed=config.seed,
            max_model_len=config.engine.max_model_len,
        )
        record = _Recorder(
            stage, shards, tokenizer, model.revision, sampling_hash(sampling.train, sampling.max_tokens), plan
        )
        done = shards.done
        missing = [sample for sample in plan if sample.key not in done]
        for sample in missing:
            if sample.skip_reason:
                record.skip(sample)
        requests = [
            request_of(sample, decoding=sampling.train, max_tokens=sampling.max_tokens)
            for sample in missing
            if not sample.skip_reason
        ]
        stats = sample_all(sampler, requests, record, done_before=len(plan) - len(requests))
    log.info("samples: drew %d tokens, %.0f a second", stats.tokens, stats.tokens_per_second)
    return round(stats.tokens_per_second, 1)


class _Recorder:
    """Writes each completion as the sample that it is; called as it finishes."""

    def __init__(
        self,
        stage: Stage,
        shards: SampleShards,
        tokenizer: ChatTokenizer,
        model_revision: str,
        sampling_hash_: str,
        plan: list[PlannedSample],
    ) -> None:
        self._stage, self._shards, self._tokenizer = stage, shards, tokenizer
        self._model_revision, self._sampling_hash = model_revision, sampling_hash_
        self._plan = {sample.key: sample for sample in plan}
        self._noted = time.monotonic()

    def __call__(self, completion: Completion) -> None:
        planned = self._plan[completion.key]  # type: ignore[index]
        sample = dataclasses.replace(
            self._empty(planned),
            response=self._tokenizer.text(completion.token_ids),
            response_token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
        )
        self._shards.write(sample)
        if time.monotonic() - self._noted > _SECONDS_BETWEEN_NOTES:
            self._stage.note_time()
            self._noted = time.monotonic()

    def skip(self, planned: PlannedSample) -> None:
        """Write that ``planned`` cannot be run."""
        self._shards.write(dataclasses.replace(self._empty(planned), skip_reason=planned.skip_reason))

    def _empty(self, planned: PlannedSample) -> Sample:
        return Sample(
            problem_id=planned.prompt.problem_id,
            sample_index=planned.sample_index,
            messages=planned.prompt.messages,
            prompt_token_ids=planned.prompt.token_ids,
            response="",
            response_token_ids=[],
            finish_reason="skipped",
            seed=planned.seed,
            sampling_hash=self._sampling_hash,
            model_revision=self._model_revision,
        )


def _stage(config: RunConfig, problems: ProblemSet, model: ModelFolder) -> Stage:
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
            "problems": hash_json([problem.to_json() for problem in problems.problems]),
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
