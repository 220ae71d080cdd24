"""The scoring stage: measures how likely each response is under a smaller model, run_dir/samples to run_dir/scores.

Nothing is dropped here; ``filters.proxy_band`` uses the scores later. The proxy reads the sample's messages in its own
chat template (or as plain text, by ``prompt.mode``) and the response in its own tokens, so it may be of any family. A
response that does not fit into the context after its prompt is scored as far as it fits.

Output: ``scores.jsonl``, one ``schema.ResponseScore`` per sample, in the order of the samples.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.hub import ModelFolder, open_model
from megatron_ssd.artifacts.jsonl import FileCursor, JsonlWriter, iter_complete_records
from megatron_ssd.artifacts.samples import SCORES, iter_samples, sample_shards, samples_manifest
from megatron_ssd.artifacts.stage import SECONDS_BETWEEN_NOTES, Stage
from megatron_ssd.config.generation import EngineConfig, PromptConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import UserError
from megatron_ssd.generation.engine import ScoreRequest
from megatron_ssd.generation.samplers import engine_facts, open_sampler
from megatron_ssd.progress import progress
from megatron_ssd.prompts.clock import RunClock
from megatron_ssd.prompts.prompt import prompt_ids
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import ResponseScore, Sample

log = logging.getLogger(__name__)

SCORES_FILE = "scores.jsonl"
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the scores, to help choose a band


def scores_stage(config: RunConfig) -> Stage:
    """The stage as ``config`` identifies it: same samples and proxy mean the same scores.

    Raises:
        UserError: no proxy is named, it does not exist, or there are no samples.
    """
    stage, _, _ = _open(config)
    return stage


def run_score(config: RunConfig) -> None:
    """Score every sample, or resume where an earlier start stopped.

    Raises:
        UserError: see ``scores_stage``; or a record is not a sample, or an engine cannot start or dies.
    """
    stage, model, max_model_len = _open(config)
    if stage.is_current():
        return
    engine = engine_facts(config.engine)
    run_dir, work = Path(config.run_dir), stage.begin()
    path = work / SCORES_FILE
    order = _keys(run_dir)
    done: dict[tuple[str, int], ResponseScore] = {}
    if path.exists():
        scores = (ResponseScore.from_json(record) for record, _ in iter_complete_records(path, FileCursor()))
        done = {score.key: score for score in scores}
    if len(done) < len(order):
        engine_config = dataclasses.replace(config.engine, max_model_len=max_model_len)
        done |= _score_missing(config, engine_config, stage, model, path, done=done, total=len(order))
    ordered = [done[key] for key in order]
    write_atomically(path, "".join(json.dumps(score.to_json(), ensure_ascii=False) + "\n" for score in ordered))
    scored = [score.mean_logprob for score in ordered if score.mean_logprob is not None]
    quantiles = (
        {f"{q:g}": round(float(value), 4) for q, value in zip(_QUANTILES, np.quantile(scored, _QUANTILES), strict=True)}
        if scored
        else {}
    )
    shown = ", ".join(f"{float(q):.0%} up to {value:.2f}" for q, value in quantiles.items())
    log.info("scores: %d of %d samples scored; mean log-probability: %s", len(scored), len(order), shown or "none")
    stage.publish(
        engine=engine,
        counts={"samples": len(order), "scored": len(scored)},
        facts={"mean_logprob_quantiles": quantiles, **RunClock(Path(config.run_dir)).facts},
    )


def _keys(run_dir: Path) -> list[tuple[str, int]]:
    """The key of every sample, in order. Raises ``UserError`` if one is repeated."""
    keys: dict[tuple[str, int], None] = {}
    for shard in sample_shards(run_dir):
        for number, sample in enumerate(iter_samples(shard), start=1):
            if sample.key in keys:
                raise UserError(
                    f"{shard}:{number} with sample {sample.sample_index} of problem {sample.problem_id!r}",
                    rule="is repeated",
                    fix=f"correct the wrong line, or remove {shard.parent} and sample again",
                )
            keys[sample.key] = None
    return list(keys)


def _score_missing(
    config: RunConfig,
    engine: EngineConfig,
    stage: Stage,
    model: ModelFolder,
    path: Path,
    *,
    done: dict[tuple[str, int], ResponseScore],
    total: int,
) -> dict[tuple[str, int], ResponseScore]:
    """Score the samples that ``done`` lacks; append each score to ``path`` and return them all."""
    found: dict[tuple[str, int], ResponseScore] = {}
    bar: tqdm[None] = progress(total=total, initial=len(done), desc="scoring", unit="response")
    with (
        open_sampler(engine, model, device=config.cluster.device, worker=config.worker) as sampler,
        JsonlWriter(path) as writer,
        bar,
    ):
        tokenizer = ChatTokenizer(model.path, RunClock(Path(config.run_dir)))
        tokenizer.check_fits(model.vocab_size)

        def record(key: tuple[str, int], mean_logprob: float | None, num_tokens: int = 0) -> None:
            problem_id, index = key
            score = ResponseScore(
                problem_id=problem_id, sample_index=index, mean_logprob=mean_logprob, num_tokens=num_tokens
            )
            writer.write(score.to_json())
            found[key] = score
            stage.note_time(every=SECONDS_BETWEEN_NOTES)
            bar.update()

        def requests() -> Iterator[ScoreRequest]:
            for sample in itertools.chain.from_iterable(map(iter_samples, sample_shards(Path(config.run_dir)))):
                if sample.key in done:
                    continue
                request = _request(sample, config.prompt, tokenizer, max_model_len=engine.max_model_len)
                if request is None:
                    record(sample.key, None)
                else:
                    yield request

        for request, mean_logprob in sampler.score(requests()):
            record(request.key, mean_logprob, len(request.response_token_ids))
    return found


def _request(
    sample: Sample, prompt: PromptConfig, tokenizer: ChatTokenizer, *, max_model_len: int
) -> ScoreRequest | None:
    """The request for a sample, in the proxy's tokens; None if there is no response, or no room for one."""
    prompt_token_ids = prompt_ids(sample.messages, prompt, tokenizer)
    response = tokenizer.response_ids(sample.response)[: max(0, max_model_len - len(prompt_token_ids))]
    if not response:
        return None
    return ScoreRequest(key=sample.key, prompt_token_ids=prompt_token_ids, response_token_ids=response)


def _open(config: RunConfig) -> tuple[Stage, ModelFolder, int]:
    """(the stage, the proxy, the longest prompt plus response that the proxy takes)."""
    proxy, run_dir = needed(config.proxy, "proxy"), Path(config.run_dir)
    model = open_model(proxy.path, proxy.revision, key="proxy.path")
    max_model_len = proxy.max_model_len or model.max_position_embeddings
    stage = Stage(
        name=SCORES,
        run_dir=run_dir,
        config={
            "max_model_len": max_model_len,
            "prompt": {"mode": config.prompt.mode, "enable_thinking": config.prompt.enable_thinking},
            "dtype": config.engine.dtype,
        },
        inputs={"samples": samples_manifest(run_dir).content_hash, "proxy": model.revision},
        replace=config.replace,
    )
    return stage, model, max_model_len
