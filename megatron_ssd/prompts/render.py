"""Problems to chat messages, by strict Jinja templates.

A template is one file of ``prompts/templates``. It sees one name, ``problem``; a field it misspells is an error, never
an empty string.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jinja2

from megatron_ssd.artifacts.hashing import sha256_file
from megatron_ssd.config.generation import PromptConfig
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.schema import Problem

_FOLDER = Path(__file__).parent / "templates"
_ENDING = ".jinja"

Message = dict[str, str]


def render_messages(problem: Problem, config: PromptConfig) -> list[Message]:
    """The conversation that asks for ``problem``: a system message where one is set, then the user's.

    Raises:
        UserError: there is no such template, or it names something that problems do not have.
    """
    try:
        content = _template(config.template).render(problem=problem)
    except jinja2.TemplateError as error:
        raise UserError(
            f"{_path(config.template)} with problem {problem.id}",
            rule=f"cannot be rendered ({error})",
            fix="mend the template; it sees the fields of megatron_ssd.schema.Problem as problem.NAME",
        ) from None
    system = [] if config.system is None else [{"role": "system", "content": config.system}]
    return [*system, {"role": "user", "content": content}]


def raw_text(messages: list[Message]) -> str:
    """The conversation without a chat template: what each message says, with a blank line between two."""
    return "\n\n".join(message["content"] for message in messages)


def template_hash(config: PromptConfig) -> str:
    """Hash of the template's text, for the identity of whatever is made with it."""
    return sha256_file(_path(config.template))


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
