"""Renders ``report.html``, a single file that loads nothing.

Style, plots and script are inside the page. Altair writes the plots as Vega-Lite specifications; the script contains
Vega-Embed, which draws them. The Content-Security-Policy allows only this script, by its hash. It forbids evaluation of
text as code, and every request. Jinja escapes everything that comes from data: a program that a model wrote cannot
become markup.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections import Counter
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron_ssd.evaluation.results import EvaluationResults
from megatron_ssd.evaluation.tables import confidence_text, ends, percent, points
from megatron_ssd.formatting import anchor, duration, visible
from megatron_ssd.problems.decontamination import HITS_FILE
from megatron_ssd.report import content, decode_plots, plots
from megatron_ssd.report.data import EvaluatedBenchmark, ReportData, thin
from megatron_ssd.report.theme import DARK, HEAT_LEVELS, LIGHT, MODEL_TITLES

SHOWN_HITS = 20
BENCHMARK_SECTIONS = (
    ("result", "Result"),
    ("difficulty", "By difficulty"),
    ("decoding", "Decode settings"),
    ("claims", "Claims"),
    ("examples", "Programs"),
)
SECTIONS = (
    ("benchmarks", "General benchmarks"),
    ("problems", "Problems"),
    ("sampling", "Training data"),
    ("training", "Training"),
    ("deviations", "Deviations"),
    ("run", "The run"),
    ("lineage", "Lineage"),
)


def render(data: ReportData) -> str:
    """The complete page."""
    environment = templates()
    script = chart_script()
    page = environment.get_template("report.html.jinja").render(
        data=data,
        style=style(environment),
        script=Markup(script),
        policy=content_policy(script),
        benchmarks=[_benchmark(one) for one in data.benchmarks],
        benchmark_sections=BENCHMARK_SECTIONS,
        general_benchmarks=data.general_benchmarks.results if data.general_benchmarks else (),
        sections=[section for section in SECTIONS if section[0] != "benchmarks" or data.general_benchmarks],
        code_version=data.manifests["eval"].code_version,
        heading=f"Simple self-distillation, {data.run_name}",
        notice=content.notice(data.settings, [one.scores for one in data.benchmarks]),
        problems_dropped=[
            (reason.replace("_", " "), count) for reason, count in Counter(data.problems.dropped).most_common() if count
        ],
        shown_hits=data.problems.hits[:SHOWN_HITS],
        hits_file=HITS_FILE,
        finish_reasons=content.finish_rows(data.sampling),
        dropped=content.dropped_rows(data.sampling),
        training_note=content.training_note(data),
        stages=content.stage_rows(data),
        facts=content.run_facts(data),
        plots=_plots(data),
        **content.paper_comparison(data.settings),
    )
    return page.lstrip()


def problems_page(benchmark: str) -> str:
    """The file name of the page with every problem of ``benchmark``."""
    return f"problems-{benchmark}.html"


def _benchmark(one: EvaluatedBenchmark) -> dict[str, Any]:
    """What the page shows of one benchmark."""
    scores = one.scores
    return {
        "name": scores.benchmark,
        "scores": scores,
        "problems_page": problems_page(scores.benchmark),
        "result": content.result_sentence(scores),
        "measure": content.measure_sentence(scores),
        "confidence": confidence_text(scores.confidence),
        "base": scores.score("base_best"),
        "ssd": scores.score("ssd_best"),
        "outcomes": content.outcomes(scores),
        "checkpoints": one.checkpoints,
        "examples": [content.example_of(problem) for problem in one.pages.examples],
        "plots": _score_plots(scores) | {"checkpoints": _checkpoint_plots(one)},
    }


def templates() -> Environment:
    """The environment of both pages' templates: undefined names are errors, and data is escaped."""
    environment = Environment(
        loader=PackageLoader("megatron_ssd.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["titles"] = MODEL_TITLES
    for function in (anchor, duration, percent, points, visible, content.split_text, content.with_stderr):
        environment.filters[function.__name__] = function
    return environment


def source(environment: Environment, name: str) -> str:
    """The text of a file in the folder of templates."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def style(environment: Environment, *more: str) -> Markup:
    """The style that both pages share, followed by ``more``."""
    colors = {"light": Markup(LIGHT.css_variables()), "dark": Markup(DARK.css_variables())}
    return Markup("\n".join([environment.get_template("style.css").render(colors), *more]))


def content_policy(script: str, style: str | None = None) -> str:
    """A Content-Security-Policy that allows this script, this style (None for any inside the page) and no request."""
    styles = "'unsafe-inline'" if style is None else _hash_source(style)
    return (
        f"default-src 'none'; script-src {_hash_source(script)}; style-src {styles}; img-src data:; base-uri 'none'; "
        f"form-action 'none'"
    )


@functools.cache
def chart_script() -> str:
    """Vega, Vega-Lite, Vega-Embed and ``charts.js`` as one script. Needs no network; takes seconds."""
    return str(vl_convert.javascript_bundle(source(templates(), "charts.js")))


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"


def _score_plots(scores: EvaluationResults) -> dict[str, Any]:
    base, ssd = scores.score("base_best"), scores.score("ssd_best")
    difficulty_ks = ends(tuple(base.overall)) if base.by_difficulty else ()
    low, high = decode_plots.value_range(scores)
    return {
        "scores": [plots.score_intervals(scores.headline, k) for k in ends(scores.ks)],
        "difficulty": [plots.by_difficulty(base, ssd, k) for k in difficulty_ks],
        "heat": decode_plots.heat_maps(scores),
        "heat_range": (f"{100 * low:.1f}", f"{100 * high:.1f} %"),
        "heat_colors": ", ".join(f"var(--heat-{level})" for level in range(HEAT_LEVELS)),
        "effective": decode_plots.effective_plots(scores),
        "mean_note": decode_plots.mean_note(scores),
    }


def _checkpoint_plots(one: EvaluatedBenchmark) -> list[plots.Plot]:
    if one.checkpoints is None:
        return []
    return [plots.over_training(one.checkpoints, one.scores.score("base_best"), k) for k in ends(one.scores.ks)]


def _plots(data: ReportData) -> dict[str, Any]:
    points, _ = thin(data.training)
    return {
        "lengths": plots.histogram(
            data.sampling.lengths, title="Length of a response", note="responses by number of tokens", unit="tokens"
        ),
        "training": [
            plots.curve(
                [(point.iteration, getattr(point, name)) for point in points],
                title=title, note=note, from_zero=from_zero,
            )
            for title, note, name, from_zero in (
                ("Loss", "nats per response token", "loss", False),
                ("Gradient norm", "before clipping", "grad_norm", True),
                ("Learning rate", "", "learning_rate", True),
                ("Throughput", "tokens per second", "tokens_per_second", True),
            )
        ],
    }  # fmt: skip
