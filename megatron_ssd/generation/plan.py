"""Converts the samples of a run to engine requests, or completions to samples.

A seed depends on (run seed, problem id, sample index) alone: not on shards, processes or order, and not on the sampling
parameters, so two settings use the same random numbers for a problem.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.generation.engine import Completion, Request
from megatron_ssd.prompts.prompt import Prompt
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Sample

_SEED_BITS = 63  # of a non-negative int64


def request_seed(run_seed: int, problem_id: str, sample_index: int) -> int:
    """The seed of one request, uniform over the non-negative 64-bit integers."""
    digest = hashlib.sha256(f"{run_seed}\0{problem_id}\0{sample_index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & ((1 << _SEED_BITS) - 1)


def plan_requests(
    prompts: Iterable[Prompt],
    *,
    num_samples: int,
    run_seed: int,
    params: SamplingParams,
    max_tokens: int,
    max_model_len: int,
) -> list[Request]:
    """``num_samples`` requests per prompt, those of a problem together, in the order of the prompts.

    Args:
        prompts: prompts of distinct problems.
        num_samples: responses per prompt.
        run_seed: the run's seed.
        params: how tokens are drawn.
        max_tokens: the longest response.
        max_model_len: longest prompt plus response that the engine takes, in tokens.
    """
    return [
        Request(
            prompt=prompt,
            sample_index=index,
            seed=request_seed(run_seed, prompt.problem_id, index),
            params=params,
            max_tokens=max_tokens,
            skip_reason=skip_reason(len(prompt.token_ids), max_model_len),
        )
        for prompt in prompts
        for index in range(num_samples)
    ]


def skip_reason(prompt_length: int, max_model_len: int) -> str:
    """Why a prompt of ``prompt_length`` tokens cannot be run; empty if it can."""
    if prompt_length == 0:
        return "the prompt is empty"
    if prompt_length >= max_model_len:
        return f"the prompt has {prompt_length} tokens and engine.max_model_len is {max_model_len}"
    return ""


def sample_of(
    request: Request,
    completion: Completion | None,
    *,
    tokenizer: ChatTokenizer,
    sampling_hash: str,
    model_revision: str,
) -> Sample:
    """The record of a request, with the token ids as sampled; ``completion`` is None if the prompt cannot be run."""
    return Sample(
        problem_id=request.prompt.problem_id,
        sample_index=request.sample_index,
        messages=request.prompt.messages,
        prompt_token_ids=request.prompt.token_ids,
        response=tokenizer.text(completion.token_ids) if completion else "",
        response_token_ids=completion.token_ids if completion else [],
        finish_reason=completion.finish_reason if completion else "skipped",
        seed=request.seed,
        sampling_hash=sampling_hash,
        model_revision=model_revision,
        skip_reason=request.skip_reason,
    )


def sampling_hash(params: SamplingParams, max_tokens: int, stop_token_ids: Sequence[int]) -> str:
    """Hash of everything that decides how a token is drawn and when a response ends."""
    limits = {"max_tokens": max_tokens, "stop_token_ids": list(stop_token_ids)}
    return hash_json({"decoding": dataclasses.asdict(params), **limits})
