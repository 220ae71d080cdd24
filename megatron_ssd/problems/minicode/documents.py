"""Documents: a problem's statement and one author's answer, clean with labels or with slips for the corpus."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_ssd.config.problems import MinicodeConfig
from megatron_ssd.problems.minicode.compositions import draw
from megatron_ssd.problems.minicode.noise import write
from megatron_ssd.problems.minicode.solutions import Composition, Line, Position, Split, label, write_program

OPENING = "```python\n"
_LENGTHS = {1: 0.1, 2: 0.3, 3: 0.35, 4: 0.25}  # steps a corpus document


@dataclass(frozen=True, slots=True)
class Document:
    """A prompt (the content of the user message) and the response to it, without chat markers."""

    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class LabelledDocument:
    """A document without slips. ``pieces`` joined are the response; each is cut into labelled units on its own."""

    prompt: str
    lines: tuple[Line, ...]

    @property
    def pieces(self) -> tuple[str, ...]:
        """The opening fence, then the lines; every border is a border of tokens too."""
        return OPENING, *(line.chosen.text for line in self.lines)

    @property
    def response(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)

    @property
    def is_right(self) -> bool:
        """Whether no trap was written."""
        return all(line.chosen.right for line in self.lines)

    def positions(self, split: Split) -> Iterator[Position]:
        """A label for every unit of the response; the opening fence is ``other``."""
        yield from (Position("other", unit) for unit in split(OPENING))
        for line in self.lines:
            yield from label(line, split)


def statement(composition: Composition) -> str:
    """The problem in English: one imperative a step, in order."""
    return ", ".join(step.wording for step in composition)


def labelled(composition: Composition, rng: random.Random) -> LabelledDocument:
    """One author's answer to ``composition``."""
    return LabelledDocument(statement(composition), write_program(composition, rng))


def corpus(config: MinicodeConfig) -> Iterator[Document]:
    """The base model's corpus: ``config.num_documents`` documents, of problems that are in no other set."""
    rng = random.Random(f"minicode corpus {config.seed}")
    for _ in range(config.num_documents):
        length = rng.choices(list(_LENGTHS), list(_LENGTHS.values()))[0]
        composition = draw(rng, length, "corpus", config.seed)
        program = write(write_program(composition, rng), rng, config.noise)
        yield Document(statement(composition), OPENING + program)
