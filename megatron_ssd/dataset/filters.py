"""Filters that look at one sample at a time.

The method trains on raw responses: no filter runs a program or asks whether an answer is right. A filter is a predicate
that is true for a sample that it drops; the first in ``FILTERS`` that is true gives the reason. To add one, give it a
key in ``FilterConfig`` and a line in ``FILTERS``. ``dataset.set_filters`` has the filters that look at all samples
together.
"""

from __future__ import annotations

import ast
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.config.dataset import FilterConfig, LoopConfig
from megatron_ssd.prompts.extract import CodeBlock, extract_block
from megatron_ssd.schema import Sample

COUNTED = ("responses", "no_code", "length_capped", "looping", "end_masked", "end_masked_tokens")
DROPPED = "dropped_"  # prefix of a filter's reason among the counts

_LONGEST_PROGRAM = 1 << 20  # characters; no solution is longer, and the parser needs a hundred times the memory


@dataclass(frozen=True)
class FilteredSample:
    """A sample and what the filters find in it; each fact is computed once, and only if it is needed.

    Args:
        sample: the sample, unchanged.
        config: the filter settings.
        prompt_opens_thinking: whether prompts end inside a block of reasoning, see ``prompts.extract``.
    """

    sample: Sample
    config: FilterConfig
    prompt_opens_thinking: bool = False

    @cached_property
    def reason(self) -> str | None:
        """The name of the first filter that drops the sample; None if it is kept."""
        return next((reason for reason, drops in FILTERS.items() if drops(self)), None)

    @cached_property
    def block(self) -> CodeBlock | None:
        """The program in the response."""
        return extract_block(self.sample.response, prompt_opens_thinking=self.prompt_opens_thinking)

    @property
    def num_tokens(self) -> int:
        """Number of response tokens."""
        return len(self.sample.response_token_ids)

    @property
    def is_length_capped(self) -> bool:
        """Whether the response was cut at the length cap."""
        return self.sample.finish_reason == "length"

    @cached_property
    def loop_start(self) -> int | None:
        """Index of the first token of the loop at the end of a cut response; None if there is no loop."""
        return loop_start(self.sample.response_token_ids, self.config.loop) if self.is_length_capped else None

    @cached_property
    def num_trained(self) -> int:
        """Number of response tokens that carry loss: all, except the masked end of a cut response (``mask_end``)."""
        if self.config.length_capped != "mask_end" or not self.is_length_capped:
            return self.num_tokens
        return self.loop_start if self.loop_start is not None else max(self.num_tokens - self.config.mask_end_tokens, 0)

    def counts(self, reason: str | None) -> dict[str, int]:
        """What the sample adds to the counts of the data set: some of ``COUNTED``, and ``reason`` if it is dropped."""
        counts: dict[str, int] = {}
        if self.sample.finish_reason != "skipped":
            counts = {
                "responses": 1,
                "no_code": int(self.block is None),
                "length_capped": int(self.is_length_capped),
                "looping": int(self.loop_start is not None),
            }
        masked = self.num_tokens - self.num_trained
        if reason is not None:
            counts[DROPPED + reason] = 1
        elif masked:
            counts |= {"end_masked": 1, "end_masked_tokens": masked}
        return counts


def is_one_line_stub(response: str) -> bool:
    """Whether ``response`` has only one line, not counting blank lines and Markdown fences."""
    stripped = (line.strip() for line in response.splitlines())
    lines = (line for line in stripped if line and not line.startswith("```"))
    return len(list(itertools.islice(lines, 2))) == 1


def parses(program: str) -> bool:
    """Whether ``program`` is valid Python for the running version. The program is not run.

    Also false for input that the parser rejects: NUL bytes, lone surrogates, too deep nesting, and programs of more
    than a mebibyte.
    """
    if len(program) > _LONGEST_PROGRAM:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about escape sequences in a sample
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


# The name that the manifest counts -> whether the sample is dropped. A filter that is turned off drops nothing.
FILTERS: dict[str, Callable[[FilteredSample], bool]] = {
    "skipped": lambda it: it.sample.finish_reason == "skipped",
    "empty": lambda it: it.config.drop_empty and not it.sample.response.strip(),
    "one_line_stub": lambda it: it.config.drop_one_line_stubs and is_one_line_stub(it.sample.response),
    "too_few_tokens": lambda it: it.num_tokens < it.config.min_response_tokens,
    "too_many_tokens": lambda it: it.num_tokens > (it.config.max_response_tokens or math.inf),
    "length_capped": lambda it: it.config.length_capped == "drop" and it.is_length_capped,
    "looping": lambda it: it.config.drop_loops and it.loop_start is not None,
    "all_masked": lambda it: it.config.length_capped == "mask_end" and it.is_length_capped and it.num_trained == 0,
    "no_code": lambda it: it.config.drop_no_code and it.block is None,
    "other_language": lambda it: (
        bool(it.config.languages) and it.block is not None and it.block.language not in it.config.languages
    ),
    "unparsable": lambda it: it.config.drop_unparsable and it.block is not None and not parses(it.block.text),
}


def loop_start(token_ids: Sequence[int] | NDArray[np.int64], config: LoopConfig) -> int | None:
    """Index of the first token of the loop at the end of ``token_ids`` [num_tokens]; None if there is no loop.

    The last L tokens form a loop of period p if each of them, except the first p, equals the token p before it. The
    loop of a period is the longest such end. It counts if it has ``min_repeats`` periods and ``min_tokens`` tokens; the
    last repeat may be incomplete. The shortest period that counts is used: its multiples loop as well.

    A period can only be a distance at which the last token occurred before, and each candidate is compared over the
    length that it needs. So the cost depends on ``min_repeats`` x ``max_period``, not on the length of the sequence,
    except for one comparison per token to find where the loop begins.
    """
    # Only this many tokens decide the period, and converting a list costs more than comparing.
    window = max(config.min_repeats * config.max_period, config.min_tokens)
    period = _period(_backwards(token_ids[-window:]), config)
    if period is None:
        return None
    backwards = _backwards(token_ids)
    broken = np.flatnonzero(backwards[period:] != backwards[:-period])
    length = period + (int(broken[0]) if len(broken) else len(backwards) - period)
    return len(backwards) - length


def _backwards(token_ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(token_ids, dtype=np.int64)[::-1]


def _period(backwards: NDArray[np.int64], config: LoopConfig) -> int | None:
    """The shortest period that ``backwards`` begins with and that counts as a loop; None if there is none."""
    if len(backwards) == 0:
        return None
    longest = min(config.max_period, len(backwards) // config.min_repeats)
    candidates = np.flatnonzero(backwards[1 : longest + 1] == backwards[0]) + 1
    for period in candidates.tolist():
        needed = max(config.min_repeats * period, config.min_tokens)
        if needed <= len(backwards) and np.array_equal(backwards[period:needed], backwards[: needed - period]):
            return int(period)
    return None
