"""Writes minicode documents: a problem's statement with one author's answer.

A document comes with labels, or with slips for the corpus.

Slips are noise at locks, which gives a base model its tail of distractors. Some documents are careless, at one of
several levels. In a careless document each word at a lock is replaced with a probability that is the level times the
weight of the word's class; the author continues as if the word were right. The distractor is mostly a word that is
easily confused (of the same class, a few of them common), otherwise any word, by Zipf's law. Forks are not changed: a
choice of the author is not a slip.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.problems.minicode.compositions import draw
from megatron_ssd.problems.minicode.solutions import Composition, Line, Position, Split, label, write_program

OPENING = "```python\n"
_LENGTHS = {1: 0.1, 2: 0.3, 3: 0.35, 4: 0.25}  # steps per corpus document

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


@dataclass(frozen=True, slots=True)
class Document:
    """A prompt (the content of the user message) and its response, without chat markers."""

    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class LabelledDocument:
    """A document without slips. Each piece of the response is cut into labelled units by itself."""

    prompt: str
    lines: tuple[Line, ...]

    @property
    def response(self) -> str:
        """The complete answer."""
        return OPENING + "".join(line.chosen.text for line in self.lines)

    @property
    def is_right(self) -> bool:
        """Whether no trap was written."""
        return all(line.chosen.right for line in self.lines)

    def positions(self, split: Split) -> Iterator[Position]:
        """A label for each unit of the response; the opening fence is ``other``."""
        yield from (Position("other", unit) for unit in split(OPENING))
        for line in self.lines:
            yield from label(line, split)


def statement(composition: Composition) -> str:
    """The problem in English: one imperative per step, in order."""
    return ", ".join(step.wording for step in composition)


def labelled(composition: Composition, rng: random.Random) -> LabelledDocument:
    """One author's answer to ``composition``."""
    return LabelledDocument(statement(composition), write_program(composition, rng))


def corpus(config: MinicodeConfig) -> Iterator[Document]:
    """The base model's corpus: ``config.num_documents`` documents about problems that are in no other set."""
    rng = random.Random(f"minicode corpus {config.seed}")
    for _ in range(config.num_documents):
        length = rng.choices(list(_LENGTHS), list(_LENGTHS.values()))[0]
        composition = draw(rng, length, "corpus", config.seed)
        program = write_with_slips(write_program(composition, rng), rng, config.noise)
        yield Document(statement(composition), OPENING + program)


@functools.lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """``text`` cut into words, which joined are ``text`` again."""
    return tuple(_WORD.findall(text))


def write_with_slips(lines: tuple[Line, ...], rng: random.Random, scale: float) -> str:
    """The text of a program with its author's slips. ``scale`` multiplies their probability; 0 means none."""
    level = scale * rng.choice(LEVELS) if rng.random() < CARELESS_SHARE else 0.0
    return "".join(word for line in lines for word in _slips(line, rng, level))


def _slips(line: Line, rng: random.Random, level: float) -> list[str]:
    written = list(words(line.chosen.text))
    struck = [index for index, word in enumerate(written) if rng.random() < level * _weight(word)]
    if struck:
        labels = list(label(line, words))
        for index in struck:
            if labels[index].kind == "lock":
                written[index] = _distractor(written[index], rng)
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
