"""Turns a problem into a prompt with a strict Jinja template, then the model's chat template or plain text.

A task template is a file in ``prompts/templates``. Its only variable is ``problem``; a field that does not exist is an
error, never an empty string. ``prompt.template`` names it, except for the prompts of base models (``prompt.mode=raw``)
for HumanEval and MBPP. Those are code to continue, ``completion``: HumanEval's own prompt, or MBPP's task and
assertions as a docstring.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from megatron_ssd.artifacts.hashing import hash_json, sha256_file
from megatron_ssd.config.generation import PromptConfig
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.prompts.extract import THINK_OPEN
from megatron_ssd.prompts.tokenizer import ChatTokenizer, Message
from megatron_ssd.schema import CHECKED_FORMS, Problem

_FOLDER = Path(__file__).parent / "templates"
_ENDING = ".jinja"
_COMPLETION = "completion"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The prompt for one problem."""

    problem_id: str
    messages: list[Message]
    token_ids: list[int]


def build_prompts(problems: Iterable[Problem], config: PromptConfig, tokenizer: ChatTokenizer) -> Iterator[Prompt]:
    """One prompt per problem, in order. Raises what ``render_messages`` and ``ChatTokenizer`` raise."""
    for problem in problems:
        messages = render_messages(problem, config)
        yield Prompt(problem_id=problem.id, messages=messages, token_ids=prompt_ids(messages, config, tokenizer))


def prompt_ids(messages: list[Message], config: PromptConfig, tokenizer: ChatTokenizer) -> list[int]:
    """Token ids of a conversation, by ``prompt.mode``. Raises what ``ChatTokenizer`` raises.

    Without a chat template, blank lines separate the messages.
    """
    if config.mode == "raw":
        return tokenizer.text_ids("\n\n".join(message["content"] for message in messages))
    return tokenizer.prompt_ids(messages, enable_thinking=config.enable_thinking)


def prompts_open_thinking(problems: Sequence[Problem], config: PromptConfig, tokenizer: ChatTokenizer) -> bool:
    """Whether prompts end with an open ``<think>``, which responses then close. The first prompt decides."""
    return any(
        tokenizer.text(prompt.token_ids).rstrip().endswith(THINK_OPEN)
        for prompt in build_prompts(problems[:1], config, tokenizer)
    )


def render_messages(problem: Problem, config: PromptConfig) -> list[Message]:
    """The conversation that asks for ``problem``: a system message if one is set, then the user's.

    Raises:
        UserError: there is no such template, or it uses a field that problems do not have.
    """
    name = _COMPLETION if config.mode == "raw" and problem.form in CHECKED_FORMS else config.template
    try:
        content = _template(name).render(problem=problem)
    except jinja2.TemplateError as error:
        raise UserError(
            f"{_path(name)} with problem {problem.id}",
            rule=f"cannot be rendered ({error})",
            fix="correct the template; it sees the fields of megatron_ssd.schema.Problem as problem.NAME",
        ) from None
    system = [] if config.system is None else [{"role": "system", "content": config.system}]
    return [*system, {"role": "user", "content": content}]


def template_hash(config: PromptConfig) -> str:
    """Hash of the template's text, for the identity of what is made with it."""
    own = sha256_file(_path(config.template))
    return own if config.mode == "chat" else hash_json([own, sha256_file(_path(_COMPLETION))])


def _path(name: str) -> Path:
    path = _FOLDER / f"{name}{_ENDING}"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _FOLDER.glob(f"*{_ENDING}")))
        raise ConfigError(f"prompt.template = {name}", rule=f"there is no {path}", fix=f"use one of {known}, or add it")
    return path


@functools.cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)
    return environment.from_string(_path(name).read_text(encoding="utf-8"))
