"""Extracts the program from a model's response.

Each benchmark has one rule (``grading.rules``):
- ``lcb``, LiveCodeBench's own: the program is what stands between the last two lines that hold three backticks.
  Nothing else counts: neither the tag of a fence, nor what follows a closing fence, nor reasoning.
- ``entry_point``, in effect evalplus's sanitizer: the program is the definition of the function that the tests call,
  with what it needs, behind the problem's ``prompt``. See ``prompts.entry_point``; fences do not matter.
- ``last_block``, the general rule: the last closed fenced block that is tagged as Python; if there is none, the last
  closed block. The filters of a data set use it too.

The general rule in detail:
1. Reasoning is removed. It is open from the start if the prompt opened it (``prompt_opens_thinking``) or if the
   response begins with ``<think>``, and the first ``</think>`` ends it. Reasoning that never ends has no program. If
   nothing opened it, a line ``</think>`` outside of blocks ends it. Elsewhere these marks are text.
2. A fence is a line that begins, after white space, with three or more backticks or tildes. A later line that begins
   with the same characters, at least as often, closes it, unless a language follows. A last fence that is never closed
   (a response cut at the length limit) is not a block.
3. A block that is only white space has no program.

The time is linear in the length of any response.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from megatron_ssd.prompts.entry_point import definition_of, parses

THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
# Possessive quantifiers: otherwise a long run of blanks that ends in no fence takes quadratic time.
_FENCE = re.compile(r"^\s*+(?P<marks>`{3,}+|~{3,}+)(?P<info>[^`\n]*+)$")
_LANGUAGE = re.compile(r"[A-Za-z][\w+#.-]*+\s*+$")  # directly behind the marks of an opening fence
_PYTHON = "python"
_PYTHON_TAGS = frozenset({_PYTHON, "python3", "py", "py3"})

ExtractionRule = Literal["lcb", "entry_point", "last_block"]
NoProgram = Literal[
    "empty response", "reasoning not closed", "no fence", "fence not closed", "empty block", "no entry point"
]


class CodeBlock(NamedTuple):
    """A fenced block with a program: the language of its fence ("" if it names none), and its text.

    The language is in lower case, and ``python`` for all names of Python.
    """

    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Extraction:
    """The program in a response, or the ``cause`` why there is none. Exactly one of them is set."""

    program: str | None = None
    cause: NoProgram | None = None


def extract_program(
    response: str,
    *,
    rule: ExtractionRule,
    entry_point: str | None = None,
    prompt: str = "",
    tested_names: frozenset[str] = frozenset(),
    prompt_opens_thinking: bool = False,
) -> Extraction:
    """The program that ``response`` offers under ``rule``. See the rules of the module.

    Args:
        response: what a chat model answered.
        rule: of the benchmark.
        entry_point: the function that the tests call. Without one, ``last_block`` replaces ``entry_point``.
        prompt: the start of the program that the problem gives, for ``entry_point``. It runs in front of the program,
            and a response that only continues it counts.
        tested_names: further names of the program that the tests use, for ``entry_point``.
        prompt_opens_thinking: whether the prompt ended in an open ``<think>``.
    """
    if not response.strip():
        return Extraction(cause="empty response")
    if rule == "lcb":
        found = _between_last_fences(response)
    elif rule == "entry_point" and entry_point is not None:
        reasoning = response[: -len(answer)] if (answer := _answer(response, prompt_opens_thinking)) else ""
        found = _defined(response, entry_point, prompt, tested_names, reasoning)
    else:
        block = _last_block(response, prompt_opens_thinking)
        return Extraction(program=block.text) if isinstance(block, CodeBlock) else Extraction(cause=block)
    if found.program is None and _answer(response, prompt_opens_thinking) is None:
        return Extraction(cause="reasoning not closed")
    return found


def extract_block(response: str, *, prompt_opens_thinking: bool = False) -> CodeBlock | None:
    """The block that holds the program under the general rule, or None if there is none."""
    found = _last_block(response, prompt_opens_thinking)
    return found if isinstance(found, CodeBlock) else None


def _between_last_fences(response: str) -> Extraction:
    lines = response.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    if len(fences) < 2:
        return Extraction(cause="fence not closed" if fences else "no fence")
    program = "\n".join(lines[fences[-2] + 1 : fences[-1]])
    return Extraction(program=program) if program.strip() else Extraction(cause="empty block")


def _defined(response: str, entry_point: str, prompt: str, tested_names: frozenset[str], reasoning: str) -> Extraction:
    # Before any other definition: a base model that goes on after the function often writes the same one again.
    if prompt and (body := _indented(response)).strip() and parses(prompt + body):
        return Extraction(program=prompt + body)
    found = definition_of(response, entry_point, also=tested_names, reasoning=reasoning)
    if found is not None:
        # A prompt without a docstring ends in a bare ``def`` line.
        front = next((text for text in (prompt, f"{prompt}    pass\n") if parses(text)), "")
        return Extraction(program="".join([*found.future_imports, front and f"{front}\n", found.program]))
    if prompt:
        blocks = [block.text for block in reversed(_fenced_blocks(response)[0])]
        for body in (*blocks[:1], response):
            if body.lstrip("\r\n")[:1].isspace() and parses(prompt + body):
                return Extraction(program=prompt + body)
    return Extraction(cause="no entry point")


def _indented(completion: str) -> str:
    """``completion`` up to the first line that leaves the function: a base model goes on with other code."""
    lines = completion.splitlines(keepends=True)
    return "".join(itertools.takewhile(lambda line: not line.strip() or line[0].isspace(), lines))


def _last_block(response: str, prompt_opens_thinking: bool) -> CodeBlock | NoProgram:
    if not response.strip():
        return "empty response"
    answer = _answer(response, prompt_opens_thinking)
    if answer is None:
        return "reasoning not closed"
    blocks, is_open = _fenced_blocks(answer)
    python = [block for block in blocks if block.language == _PYTHON]
    for block in (python or blocks)[-1:]:
        return block if block.text.strip() else "empty block"
    return "fence not closed" if is_open else "no fence"


def _answer(response: str, prompt_opens_thinking: bool) -> str | None:
    """``response`` without the reasoning that was open from the start; None if that never ends."""
    if not prompt_opens_thinking and not response.lstrip().startswith(THINK_OPEN):
        return response
    _, close, answer = response.partition(_THINK_CLOSE)
    return answer if close else None


def _fenced_blocks(text: str) -> tuple[list[CodeBlock], bool]:
    """Each closed block, and whether a last fence is never closed."""
    blocks: list[CodeBlock] = []
    opening: re.Match[str] | None = None
    content: list[str] = []
    for line in text.splitlines(keepends=True):
        # Few lines are fences; this test excludes most lines quickly.
        fence = _FENCE.match(line.rstrip("\r\n")) if "```" in line or "~~~" in line else None
        if opening is None:
            if fence is not None:
                opening, content = fence, []
            elif line.strip() == _THINK_CLOSE:
                blocks.clear()
        elif fence is not None and fence["marks"].startswith(opening["marks"]) and not _opens(fence["info"]):
            blocks.append(CodeBlock(_language(opening["info"]), "".join(content)))
            opening = None
        else:
            content.append(line)
    return blocks, opening is not None


def _opens(info: str) -> bool:
    """Whether what follows the marks of a fence names a language, so that the fence cannot close a block."""
    return _LANGUAGE.match(info) is not None or _language(info) == _PYTHON


def _language(info: str) -> str:
    word = info.split()[0].lower() if info.strip() else ""
    return _PYTHON if word in _PYTHON_TAGS else word
