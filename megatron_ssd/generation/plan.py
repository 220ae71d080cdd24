"""What there is to sample: which prompts, how often, with which seeds, and which prompts cannot be run.

A seed follows from (run seed, problem id, sample index) alone: no shard, process or order changes it, and neither does
the decoding, so that two decodings of one problem share their noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.generation.engine import Request
from megatron_ssd.prompts.prompt import Prompt

_SEED_BITS = 63  # of a non-negative int64


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSample:
    """One response to draw. ``skip_reason`` says why its prompt cannot be run, and is empty where it can."""

    prompt: Prompt
    sample_index: int
    seed: int
    skip_reason: str

    @property
    def key(self) -> tuple[str, int]:
        """(problem id, sample index)."""
        return self.prompt.problem_id, self.sample_index


def request_seed(run_seed: int, problem_id: str, sample_index: int) -> int:
    """The seed of one request, uniform over the non-negative 64-bit integers."""
    digest = hashlib.sha256(f"{run_seed}\0{problem_id}\0{sample_index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & ((1 << _SEED_BITS) - 1)


def plan_samples(
    prompts: Iterable[Prompt], *, num_samples: int, run_seed: int, max_model_len: int
) -> list[PlannedSample]:
    """``num_samples`` of each prompt, a problem's together, in the order of the prompts.

    Args:
        prompts: prompts of distinct problems.
        num_samples: responses a prompt.
        run_seed: the run's seed.
        max_model_len: tokens of prompt and response that the engine takes.
    """
    return [
        PlannedSample(
            prompt=prompt,
            sample_index=index,
            seed=request_seed(run_seed, prompt.problem_id, index),
            skip_reason=skip_reason(len(prompt.token_ids), max_model_len),
        )
        for prompt in prompts
        for index in range(num_samples)
    ]


def skip_reason(prompt_length: int, max_model_len: int) -> str:
    """Why a prompt of ``prompt_length`` tokens cannot be run; empty where it can."""
    if prompt_length == 0:
        return "the prompt is empty"
    if prompt_length >= max_model_len:
        return f"the prompt has {prompt_length} tokens and engine.max_model_len is {max_model_len}"
    return ""


def request_of(sample: PlannedSample, *, decoding: SamplingParams, max_tokens: int) -> Request:
    """What the engine is asked, keyed by the sample's key."""
    return Request(
        key=sample.key,
        prompt_token_ids=sample.prompt.token_ids,
        seed=sample.seed,
        decoding=decoding,
        max_tokens=max_tokens,
    )
