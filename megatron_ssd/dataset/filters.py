"""Which samples are left out of training, each with a reason that is counted.

The method trains on raw responses: nothing here runs a program or asks whether an answer is right. A filter is a
predicate on one response that is true where the response goes; the first in ``FILTERS`` that holds gives the reason.
To add one: write the predicate, give it a switch in ``FilterConfig``, add its row. Filters that must see the whole set
are in ``dataset.set_filters``.
"""

from __future__ import annotations

import ast
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.dataset.loops import loop_start
from megatron_ssd.prompts.extract import CodeBlock, extract_block
from megatron_ssd.schema import Sample

_LONGEST_PROGRAM = 1 << 20  # characters; no solution is that long, and a parser takes a hundred times the memory


@dataclass(frozen=True)
class Response:
    """A sample with what filters ask of it, each found once and only where it is asked for.

    Args:
        sample: as sampled.
        config: what is asked for.
        prompt_opens_thinking: see ``prompts.extract``.
    """

    sample: Sample
    config: FilterConfig
    prompt_opens_thinking: bool = False

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
        """Where the loop begins that the response ends in. One that stopped by itself ends in none."""
        return loop_start(self.sample.response_token_ids, self.config.loop) if self.is_length_capped else None

    @cached_property
    def num_trained(self) -> int:
        """How many ids of the response carry loss: all, but for the end of a cut one under ``mask_end``."""
        length = len(self.sample.response_token_ids)
        if self.config.length_capped != "mask_end" or not self.is_length_capped:
            return length
        return self.loop_start if self.loop_start is not None else max(length - self.config.mask_end_tokens, 0)


class Filter(NamedTuple):
    """A row of the table: the reason's name, the predicate, and whether the configuration asks for it."""

    reason: str
    drops: Callable[[Response], bool]
    is_on: Callable[[FilterConfig], bool]


def is_skipped(response: Response) -> bool:
    """Whether the sampler could not run the prompt, so that there is no response at all."""
    return response.sample.finish_reason == "skipped"


def is_empty(response: Response) -> bool:
    """Whether the response is nothing but white space."""
    return not response.sample.response.strip()


def is_one_line_stub(response: Response) -> bool:
    """Whether the response has one line only; blank lines and Markdown fences are not counted."""
    stripped = (line.strip() for line in response.sample.response.splitlines())
    lines = (line for line in stripped if line and not line.startswith("```"))
    return len(list(itertools.islice(lines, 2))) == 1


def is_too_short(response: Response) -> bool:
    """Whether the response has fewer tokens than asked for."""
    return len(response.sample.response_token_ids) < response.config.min_response_tokens


def is_too_long(response: Response) -> bool:
    """Whether the response has more tokens than asked for."""
    longest = response.config.max_response_tokens
    return longest is not None and len(response.sample.response_token_ids) > longest


def is_length_capped(response: Response) -> bool:
    """Whether the response was cut at the length cap."""
    return response.is_length_capped


def is_looping(response: Response) -> bool:
    """Whether the response was cut in a loop."""
    return response.loop_start is not None


def is_all_masked(response: Response) -> bool:
    """Whether a response was cut and nothing of it would carry loss."""
    return response.is_length_capped and response.num_trained == 0


def has_no_code(response: Response) -> bool:
    """Whether no program can be extracted from the response."""
    return response.block is None


def is_other_language(response: Response) -> bool:
    """Whether the program's fence names a language that was not asked for."""
    return response.block is not None and response.block.language not in response.config.languages


def is_unparsable(response: Response) -> bool:
    """Whether there is a program and it is no Python of the version that runs this."""
    return response.block is not None and not parses(response.block.text)


def parses(program: str) -> bool:
    """Whether ``program`` is Python of the version that runs this. Nothing of it is run.

    False, too, for what the parser gives up on: NUL bytes, lone surrogates, nesting too deep for it, and programs of
    more than a mebibyte.
    """
    if len(program) > _LONGEST_PROGRAM:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd escape sequence in a sample is nobody's concern here
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


def reason_to_drop(response: Response) -> str | None:
    """The name of the first filter that drops ``response``; None where it stays."""
    return next((row.reason for row in FILTERS if row.is_on(response.config) and row.drops(response)), None)
