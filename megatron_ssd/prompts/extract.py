"""The program in a model's response.

Rules, in this order:
1. Reasoning is cut off: everything up to and including the last ``</think>``. A response that opens ``<think>`` and
   never closes it, or that never closes what its prompt opened (``prompt_opens_thinking``), holds no program.
2. A fence is a line that begins, after white space, with three or more backticks or tildes. It is closed by the next
   line that holds nothing but at least as many of the same character. A last fence that is never closed (a response cut
   at the length limit) is no block.
3. Of the closed blocks the last one tagged as Python is the program; where none is tagged so, the last one.
4. A response without a closed block, or whose program is white space alone, holds none.

The time taken is linear in the response, whatever is in it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
# Possessive: a line of a fence and many blanks that is none after all would be tried in every division of the blanks.
_FENCE = re.compile(r"^\s*+(?P<marks>`{3,}+|~{3,}+)\s*+(?P<tag>[^`\n]*+)$")
_PYTHON = "python"
_PYTHON_TAGS = frozenset({_PYTHON, "python3", "py", "py3"})


class CodeBlock(NamedTuple):
    """A fenced block that holds a program: its language as its fence says, "" where that says nothing, and its text.

    The language is in small letters, and ``python`` for each of Python's names.
    """

    language: str
    text: str


def extract_code(response: str, *, prompt_opens_thinking: bool = False) -> str | None:
    """The program that ``response`` offers, or None where it offers none. See the module's rules."""
    block = extract_block(response, prompt_opens_thinking=prompt_opens_thinking)
    return None if block is None else block.text


def extract_block(response: str, *, prompt_opens_thinking: bool = False) -> CodeBlock | None:
    """The block that holds the program that ``response`` offers, or None where it offers none."""
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
        # Few lines are fences, and most are known not to be without a look at each letter.
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
