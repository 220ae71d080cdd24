"""Extracts the program from a model's response.

Rules, in this order:
1. Reasoning is removed: everything up to and including the last ``</think>``. A response that opens ``<think>`` and
   never closes it, or never closes the one that its prompt opened (``prompt_opens_thinking``), has no program.
2. A fence is a line that begins, after white space, with three or more backticks or tildes. The next line that has
   only the same character, at least as often, closes it. A last fence that is never closed (a response cut at the
   length limit) is not a block.
3. The program is the last closed block that is tagged as Python; if there is none, the last closed block.
4. A response without a closed block, or whose program is only white space, has no program.

The time is linear in the length of any response.
"""

from __future__ import annotations

import re
from typing import NamedTuple

THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
# Possessive quantifiers: otherwise a long run of blanks that ends in no fence takes quadratic time.
_FENCE = re.compile(r"^\s*+(?P<marks>`{3,}+|~{3,}+)\s*+(?P<tag>[^`\n]*+)$")
_PYTHON = "python"
_PYTHON_TAGS = frozenset({_PYTHON, "python3", "py", "py3"})


class CodeBlock(NamedTuple):
    """A fenced block with a program: the language of its fence ("" if it names none), and its text.

    The language is in lower case, and ``python`` for all names of Python.
    """

    language: str
    text: str


def extract_code(response: str, *, prompt_opens_thinking: bool = False) -> str | None:
    """The program that ``response`` offers, or None if there is none. See the rules of the module."""
    block = extract_block(response, prompt_opens_thinking=prompt_opens_thinking)
    return None if block is None else block.text


def extract_block(response: str, *, prompt_opens_thinking: bool = False) -> CodeBlock | None:
    """The block that holds the program that ``response`` offers, or None if there is none."""
    answer = _without_reasoning(response, prompt_opens_thinking)
    blocks = [] if answer is None else _fenced_blocks(answer)
    python = [block for block in blocks if block.language == _PYTHON]
    for block in (python or blocks)[-1:]:
        return block if block.text.strip() else None
    return None


def _without_reasoning(response: str, prompt_opens_thinking: bool) -> str | None:
    _, close, after = response.rpartition(_THINK_CLOSE)
    if not close and prompt_opens_thinking:
        return None
    if THINK_OPEN in after:
        return None
    return after if close else response


def _fenced_blocks(text: str) -> list[CodeBlock]:
    """Each closed block."""
    blocks: list[CodeBlock] = []
    opening: re.Match[str] | None = None
    content: list[str] = []
    for line in text.splitlines(keepends=True):
        # Few lines are fences; this test excludes most lines quickly.
        fence = _FENCE.match(line.rstrip("\r\n")) if "```" in line or "~~~" in line else None
        if opening is None:
            if fence is not None:
                opening, content = fence, []
        elif fence is not None and not fence["tag"] and fence["marks"].startswith(opening["marks"]):
            blocks.append(CodeBlock(_language(opening["tag"]), "".join(content)))
            opening = None
        else:
            content.append(line)
    return blocks


def _language(tag: str) -> str:
    word = tag.split()[0].lower() if tag.strip() else ""
    return _PYTHON if word in _PYTHON_TAGS else word
