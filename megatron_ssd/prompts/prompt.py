"""Problems to prompts: messages, and the ids they are in the model's chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megatron_ssd.config.generation import PromptConfig
from megatron_ssd.prompts.render import Message, render_messages
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model is asked about one problem."""

    problem_id: str
    messages: list[Message]
    token_ids: list[int]


def build_prompts(problems: Iterable[Problem], config: PromptConfig, tokenizer: ChatTokenizer) -> Iterator[Prompt]:
    """One prompt a problem, in order. Raises what ``render_messages`` and ``ChatTokenizer.prompt_ids`` raise."""
    for problem in problems:
        messages = render_messages(problem, config)
        token_ids = tokenizer.prompt_ids(messages, enable_thinking=config.enable_thinking)
        yield Prompt(problem_id=problem.id, messages=messages, token_ids=token_ids)
