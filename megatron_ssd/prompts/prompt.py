"""Problems to prompts: messages, and the ids that they are in the model's chat template or as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from megatron_ssd.config.generation import PromptConfig
from megatron_ssd.prompts.extract import THINK_OPEN
from megatron_ssd.prompts.render import Message, raw_text, render_messages
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model is asked about one problem."""

    problem_id: str
    messages: list[Message]
    token_ids: list[int]


def build_prompts(problems: Iterable[Problem], config: PromptConfig, tokenizer: ChatTokenizer) -> Iterator[Prompt]:
    """One prompt a problem, in order. Raises what ``render_messages`` and ``ChatTokenizer`` raise."""
    for problem in problems:
        messages = render_messages(problem, config)
        if config.mode == "raw":
            token_ids = tokenizer.text_ids(raw_text(messages))
        else:
            token_ids = tokenizer.prompt_ids(messages, enable_thinking=config.enable_thinking)
        yield Prompt(problem_id=problem.id, messages=messages, token_ids=token_ids)


def prompts_open_thinking(problems: Sequence[Problem], config: PromptConfig, tokenizer: ChatTokenizer) -> bool:
    """Whether the prompt itself opens the reasoning, so that a response only ever closes it; the first shows it."""
    return any(
        tokenizer.text(prompt.token_ids).rstrip().endswith(THINK_OPEN)
        for prompt in build_prompts(problems[:1], config, tokenizer)
    )
