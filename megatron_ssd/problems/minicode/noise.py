"""The slips of this world's authors: a noise process at locks, which gives a base model its distractor tail.

Some documents are careless, to some level. In a careless document a word at a lock is replaced with a probability that
is the level times the weight of the word's class; the author goes on as if it had not happened. The distractor is
mostly one that the word could be confused with (same class, a few of them common), else any word, by Zipf's law.
Forks are left as they are: what authors choose there is no slip.
"""

from __future__ import annotations

import functools
import itertools
import random
import re

from megatron_ssd.problems.minicode.solutions import Line, label

CARELESS_SHARE = 0.6
LEVELS = (0.04, 0.12, 0.3)  # of a careless document, equally common
CONFUSED_SHARE = 0.6

_CLASSES: dict[str, tuple[float, tuple[str, ...]]] = {
    "digit": (1.6, ("2", "1", "3", "0", "4", "5", "6", "7", "8", "9")),
    "comparison": (1.4, (">", "==", "<", ">=", "!=", "<=")),
    "arithmetic": (1.2, ("+", "-", "*", "//", "%", "/", "**")),
    "name": (1.0, ("x", "xs", "ys", "n", "nums", "zs", "v", "ws", "i", "vs")),
    "function": (0.8, ("sorted", "list", "max", "sum", "len", "min", "set", "map", "filter", "abs", "reversed", "int")),
    "keyword": (0.5, ("for", "in", "if", "return", "lambda", "range", "append", "key", "reverse", "default")),
    "bracket": (0.6, (")", "]", "(", "[", ":", ",", "=", ".")),
}
_CLASS_OF = {word: name for name, (_, words) in _CLASSES.items() for word in words}
_ALL_WORDS = tuple(word for group in itertools.zip_longest(*(words for _, words in _CLASSES.values()))
                   for word in group if word is not None)  # fmt: skip

# A word with the space before it, or a line break with the indentation after it.
_WORD = re.compile(r"\n *(?:```)?| ?(?:[A-Za-z_]+|\d+|==|<=|>=|!=|//|\*\*|[^\w\s])| ")


@functools.lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """``text`` cut into words; joined again they are ``text``."""
    return tuple(_WORD.findall(text))


def write(lines: tuple[Line, ...], rng: random.Random, scale: float) -> str:
    """The text of a program with its author's slips. ``scale`` multiplies their probability; 0 for none."""
    level = scale * rng.choice(LEVELS) if rng.random() < CARELESS_SHARE else 0.0
    return "".join(word for line in lines for word in _slips(line, rng, level))


def _slips(line: Line, rng: random.Random, level: float) -> list[str]:
    written = list(words(line.chosen.text))
    struck = [place for place, word in enumerate(written) if rng.random() < level * _weight(word)]
    if struck:
        positions = list(label(line, words))
        for place in struck:
            if positions[place].kind == "lock":
                written[place] = _distractor(written[place], rng)
    return written


def _weight(word: str) -> float:
    kind = _CLASS_OF.get(word.lstrip(" "))
    return _CLASSES[kind][0] if kind else 0.0


def _distractor(word: str, rng: random.Random) -> str:
    core = word.lstrip(" ")
    pool = _CLASSES[_CLASS_OF[core]][1] if rng.random() < CONFUSED_SHARE else _ALL_WORDS
    others = [other for other in pool if other != core]
    shares = [1 / rank for rank in range(1, len(others) + 1)]
    return word[: len(word) - len(core)] + rng.choices(others, shares)[0]
