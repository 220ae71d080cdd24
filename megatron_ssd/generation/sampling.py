"""Drawing many responses with a bar that says how it goes. Sampling and evaluation both decode through here."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.generation.engine import Completion, Request, Sampler
from megatron_ssd.progress import progress


@dataclass
class SamplingStats:
    """What was drawn in one call."""

    tokens: int = 0
    seconds: float = 0.0
    finish_reasons: Counter[str] = field(default_factory=Counter)

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens a second, over the whole call."""
        return self.tokens / self.seconds if self.seconds else 0.0


def sample_all(
    sampler: Sampler,
    requests: Sequence[Request],
    on_completion: Callable[[Completion], None],
    *,
    desc: str = "sampling",
    done_before: int = 0,
) -> SamplingStats:
    """Draw every request and hand each response on as it finishes, in no order.

    Args:
        sampler: the engines.
        requests: what to draw; keys are distinct. Requests of different decodings may be mixed.
        on_completion: called once a request, in this thread.
        desc: what the bar says.
        done_before: requests that an earlier start finished, for the bar.

    Raises:
        UserError: an engine could not start or died. What was handed on is unharmed.
    """
    stats = SamplingStats()
    if not requests:
        return stats
    sampler.wait_ready()  # loading is not counted as sampling
    started = time.monotonic()
    total = done_before + len(requests)
    bar: tqdm[None] = progress(total=total, initial=done_before, desc=desc, unit="response")
    with bar:
        for completion in sampler.sample(requests):
            on_completion(completion)
            stats.tokens += len(completion.token_ids)
            stats.finish_reasons[completion.finish_reason] += 1
            stats.seconds = time.monotonic() - started
            bar.set_postfix_str(_postfix(stats), refresh=False)
            bar.update()
    return stats


def sampling_hash(decoding: SamplingParams, max_tokens: int, stop_token_ids: Sequence[int]) -> str:
    """Hash of everything that decides how a token is drawn and when a response ends."""
    limits = {"max_tokens": max_tokens, "stop_token_ids": list(stop_token_ids)}
    return hash_json({"decoding": dataclasses.asdict(decoding), **limits})


def _postfix(stats: SamplingStats) -> str:
    reasons = " ".join(f"{reason} {count}" for reason, count in sorted(stats.finish_reasons.items()))
    return f"{stats.tokens_per_second:,.0f} tokens/s, {reasons}"
