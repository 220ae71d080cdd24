"""Filters that look at one sample at a time.

The method trains on raw responses: no filter runs a program or asks whether an answer is right. A filter is a predicate
that is true for a sample that it drops; the first in ``FILTERS`` that is true gives the reason. To add one: write the
predicate, give it a switch in ``FilterConfig``, and add it to ``FILTERS``. ``dataset.set_filters`` has the filters that
look at all samples together.
"""

from __future__ import annotations

import ast
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

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
        return next((entry.reason for entry in FILTERS if entry.is_on(self.config) and entry.drops(self)), None)

    @cached_property
    def block(self) -> CodeBlock | None:
        """The program in the response."""
        return extract_block(self.sample.response, prompt_opens_thinking=self.prompt_opens_thinking)

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
        length = len(self.sample.response_token_ids)
        if self.config.length_capped != "mask_end" or not self.is_length_capped:
            return length
        return self.loop_start if self.loop_start is not None else max(length - self.config.mask_end_tokens, 0)

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
        masked = len(self.sample.response_token_ids) - self.num_trained
        if reason is not None:
            counts[DROPPED + reason] = 1
        elif masked:
            counts |= {"end_masked": 1, "end_masked_tokens": masked}
        return counts


class Filter(NamedTuple):
    """The name that the manifest counts, the predicate, and whether the configuration turns the filter on."""

    reason: str
    drops: Callable[[FilteredSample], bool]
    is_on: Callable[[FilterConfig], bool]


def is_skipped(filtered: FilteredSample) -> bool:
    """Whether the prompt was not run, so that there is no response."""
    return filtered.sample.finish_reason == "skipped"


def is_empty(filtered: FilteredSample) -> bool:
    """Whether the response is only white space."""
    return not filtered.sample.response.strip()


def is_one_line_stub(filtered: FilteredSample) -> bool:
    """Whether the response has only one line, not counting blank lines and Markdown fences."""
    stripped = (line.strip() for line in filtered.sample.response.splitlines())
    lines = (line for line in stripped if line and not line.startswith("```"))
    return len(list(itertools.islice(lines, 2))) == 1


def is_too_short(filtered: FilteredSample) -> bool:
    """Whether the response has fewer tokens than the lower bound."""
    return len(filtered.sample.response_token_ids) < filtered.config.min_response_tokens


def is_too_long(filtered: FilteredSample) -> bool:
    """Whether the response has more tokens than the upper bound."""
    longest = filtered.config.max_response_tokens
    return longest is not None and len(filtered.sample.response_token_ids) > longest


def is_length_capped(filtered: FilteredSample) -> bool:
    """Whether the response was cut at the length cap."""
    return filtered.is_length_capped


def is_looping(filtered: FilteredSample) -> bool:
    """Whether the response was cut in a loop."""
    return filtered.loop_start is not None


def is_all_masked(filtered: FilteredSample) -> bool:
    """Whether the response was cut and none of it would carry loss."""
    return filtered.is_length_capped and filtered.num_trained == 0


def has_no_code(filtered: FilteredSample) -> bool:
    """Whether the response contains no program."""
    return filtered.block is None


def is_other_language(filtered: FilteredSample) -> bool:
    """Whether the fence of the program names a language that was not asked for."""
    return filtered.block is not None and filtered.block.language not in filtered.config.languages


def is_unparsable(filtered: FilteredSample) -> bool:
    """Whether the response contains a program that is not valid Python for the running version."""
    return filtered.block is not None and not parses(filtered.block.text)


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


FILTERS = (
    Filter("skipped", is_skipped, lambda config: True),
    Filter("empty", is_empty, lambda config: config.drop_empty),
    Filter("one_line_stub", is_one_line_stub, lambda config: config.drop_one_line_stubs),
    Filter("too_few_tokens", is_too_short, lambda config: config.min_response_tokens > 0),
    Filter("too_many_tokens", is_too_long, lambda config: config.max_response_tokens is not None),
    Filter("length_capped", is_length_capped, lambda config: config.length_capped == "drop"),
    Filter("looping", is_looping, lambda config: config.drop_loops),
    Filter("all_masked", is_all_masked, lambda config: config.length_capped == "mask_end"),
    Filter("no_code", has_no_code, lambda config: config.drop_no_code),
    Filter("other_language", is_other_language, lambda config: bool(config.languages)),
    Filter("unparsable", is_unparsable, lambda config: config.drop_unparsable),
)


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
