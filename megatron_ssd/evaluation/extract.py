"""The program in a model's response.

Rules, in this order:
1. Reasoning is cut off: everything up to and including the last ``</think>``. A response that opens ``<think>`` and
   never closes it, or that never closes what its prompt opened (``prompt_opens_thinking``), holds no program.
2. A fence is a line that begins, after white space, with three or more backticks or tildes. It is closed by the next
   line that holds nothing but at least as many of the same character. A last fence that is never closed (a response cut
   at the length limit) is no block.
3. Of the closed blocks the last one tagged as Python is the program; where none is tagged so, the last one.
4. A response without a closed block, or whose program is white space alone, holds none.
"""

from __future__ import annotations

import re

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
_FENCE = re.compile(r"^\s*(?P<marks>`{3,}|~{3,})\s*(?P<tag>[^`\n]*)$")
_PYTHON_TAGS = frozenset({"python", "python3", "py", "py3"})


def extract_code(response: str, *, prompt_opens_thinking: bool = False) -> str | None:
    """The program that ``response`` offers, or None where it offers none. See the module's rules."""
    answer = _without_reasoning(response, prompt_opens_thinking)
    blocks = [] if answer is None else _fenced_blocks(answer)
    tagged = [text for tag, text in blocks if tag in _PYTHON_TAGS]
    program = (tagged or [text for _, text in blocks] or [""])[-1]
    return program if program.strip() else None


def _without_reasoning(response: str, prompt_opens_thinking: bool) -> str | None:
    _, close, after = response.rpartition(_THINK_CLOSE)
    if not close and prompt_opens_thinking:
        return None
    if _THINK_OPEN in after:
        return None
    return after if close else response


def _fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(tag, content) of each closed block."""
    blocks: list[tuple[str, str]] = []
    opening: re.Match[str] | None = None
    content: list[str] = []
    for line in text.splitlines(keepends=True):
        fence = _FENCE.match(line.rstrip("\r\n"))
        if opening is None:
            if fence is not None:
                opening, content = fence, []
        elif fence is not None and not fence["tag"] and fence["marks"].startswith(opening["marks"]):
            words = opening["tag"].split()
            blocks.append((words[0].lower() if words else "", "".join(content)))
            opening = None
        else:
            content.append(line)
    return blocks
