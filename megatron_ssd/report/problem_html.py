"""``problems.html``: every problem of the benchmark with what base and SSD wrote, beside ``report.html``.

The list is plain markup, escaped by Jinja, and can be read without a script. The problems themselves are packed blocks
(see ``problem_blocks``) that one small script unpacks and puts in as text. The page's Content-Security-Policy names
that script and the style by their hashes and allows nothing else, so that no text of a model can be run or fetch
anything.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron_ssd.formatting import DASH, signed
from megatron_ssd.report import wording
from megatron_ssd.report.palette import DARK, LIGHT, text_on
from megatron_ssd.report.plots import MODEL_TITLES
from megatron_ssd.report.problem_blocks import Blocks, fit_blocks, kept_of_program
from megatron_ssd.report.problem_pages import ProblemPage, ProblemPages
from megatron_ssd.report.visible import visible
from megatron_ssd.schema import VerdictStatus

MEBIBYTE = 1 << 20
SOLVED = {
    "both": "solved by both",
    "ssd": "solved by SSD alone",
    "base": "solved by the base alone",
    "neither": "solved by neither",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A verdict as the page shows it: in words, as ``by_test`` writes it, and its colour on a light and a dark page.

    Failures carry their letter as well, so that nothing rests on colour alone.
    """

    title: str
    letter: str
    light: str
    dark: str

    def css(self, status: str) -> str:
        """Rules for both schemes."""
        light = f"--l: {self.light}; --lt: {text_on(self.light)};"
        return f".s-{status} {{ {light} --d: {self.dark}; --dt: {text_on(self.dark)}; }}"


OUTCOMES: dict[VerdictStatus, Outcome] = {
    "passed": Outcome(title="passed", letter=".", light="#2b756d", dark="#46938a"),
    "wrong_answer": Outcome(title="wrong answer", letter="W", light="#b3304b", dark="#e0788c"),
    "runtime_error": Outcome(title="runtime error", letter="R", light="#7b4a9e", dark="#bb93d8"),
    "timeout": Outcome(title="time-out", letter="T", light="#6d6512", dark="#c9bd5a"),
    "memory": Outcome(title="memory", letter="M", light="#4d5f2c", dark="#a3b87a"),
    "syntax_error": Outcome(title="syntax error", letter="S", light="#3f4a86", dark="#98a2dd"),
    "no_code": Outcome(title="no code", letter="N", light="#8a929a", dark="#6d7680"),
    "infrastructure_error": Outcome(title="infrastructure error", letter="I", light="#1a1d21", dark="#e8ebee"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A problem in the list. ``scores`` are (passed, judged) of base and SSD; sorting goes by ``keys``."""

    anchor: str
    problem_id: str
    title: str
    difficulty: str
    date: str
    half: str
    scores: tuple[tuple[int, int], ...]
    change: str
    direction: str  # "up", "down" or "": which colour the change has
    solved: str
    statuses: str
    keys: dict[str, float | str]


def render_problems(pages: ProblemPages, *, run_name: str, code_version: str, page_mib: float) -> str:
    """The whole page, of at most ``page_mib`` MiB. Raises ``ConfigError`` where that cannot be."""
    environment = Environment(
        loader=PackageLoader("megatron_ssd.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    colors = {"light": Markup(LIGHT.css_variables()), "dark": Markup(DARK.css_variables())}
    outcomes = "\n".join(outcome.css(status) for status, outcome in OUTCOMES.items())
    style = "\n".join(
        (environment.get_template("style.css").render(colors), _source(environment, "problems.css"), outcomes)
    )
    script = _source(environment, "problems.js")
    template = environment.get_template("problems.html.jinja")

    def page(blocks: Blocks) -> str:
        return template.render(
            style=Markup(style),
            script=Markup(script),
            policy=content_policy(script=script, style=style),
            run_name=visible(run_name),
            code_version=code_version,
            columns=[{"model": row.model, "title": row.title, "decoding": row.decoding} for row in pages.columns],
            titles=MODEL_TITLES,
            rows=[_row(problem, pages.difficulties) for problem in pages.problems],
            difficulties=[visible(name) for name in pages.difficulties],
            halves=sorted({problem.half for problem in pages.problems} - {""}),
            dates=any(problem.date for problem in pages.problems),
            has_tests=pages.has_tests,
            solved=SOLVED,
            outcomes=OUTCOMES,
            words=_words(),
            blocks=[Markup(text) for text in blocks.texts],
            kept=_kept(blocks),
        ).lstrip()

    shell = page(Blocks(texts=(), limit=0, num_cut=1, num_responses=len(pages.problems)))
    room = int(page_mib * MEBIBYTE) - len(shell.encode("utf-8")) - 1024  # the sentence on what was cut varies in length
    return page(fit_blocks(pages.problems, room, page_mib=page_mib))


def content_policy(*, script: str, style: str) -> str:
    """The page's Content-Security-Policy: this script and this style, and nothing from anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode() for text in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; img-src data:; "
        f"base-uri 'none'; form-action 'none'"
    )


def anchor(problem_id: str) -> str:
    """What stands after ``#`` in the address of a problem."""
    return quote(visible(problem_id), safe="")


def _source(environment: Environment, name: str) -> str:
    """A file of the templates' folder, as it is."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _row(problem: ProblemPage, difficulties: tuple[str, ...]) -> Row:
    scores = tuple(problem.passed(column) for column in range(len(problem.attempts)))
    change = problem.change
    shares = [passed / total if total else -1.0 for passed, total in scores]
    return Row(
        anchor=anchor(problem.problem_id),
        problem_id=visible(problem.problem_id),
        title=visible(problem.title),
        difficulty=visible(problem.difficulty),
        date=visible(problem.date),
        half=problem.half,
        scores=scores,
        change=DASH if change is None else signed(change).removesuffix(".0"),
        direction="" if not change else "up" if change > 0 else "down",
        solved=problem.solved,
        statuses=" ".join(problem.statuses),
        keys={
            "difficulty": difficulties.index(problem.difficulty),
            "base": round(shares[0], 6),
            "ssd": round(shares[1], 6),
            "change": -2.0 if change is None else round(change, 6),
        },
    )


def _words() -> dict[str, Any]:
    """What the script needs of the project's vocabulary."""
    return {
        "statuses": {status: outcome.title for status, outcome in OUTCOMES.items()},
        "letters": {outcome.letter: status for status, outcome in OUTCOMES.items()},
        "finish": wording.FINISH_REASONS,
        "models": [MODEL_TITLES["base"], MODEL_TITLES["ssd"]],
    }


def _kept(blocks: Blocks) -> str:
    """What was cut, in a sentence."""
    if not blocks.num_cut:
        return "Every response is here in full."
    return (
        f"{blocks.num_cut:,} of {blocks.num_responses:,} responses are cut in the middle to keep this file small: "
        f"{blocks.limit:,} characters are kept before and after each program, and {kept_of_program(blocks.limit):,} of "
        f"the program itself; each place says how many are missing. Whole responses are in eval/generations."
    )
