"""``report.html``: one page with its style and pictures inside, that loads nothing and runs no script.

``problems.html`` beside it (see ``problem_html``) has every problem.

Everything that comes from data is escaped by Jinja or by ``svg.element``; a program that a model wrote cannot become
markup.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron_ssd.problems.decontamination import HITS_FILE
from megatron_ssd.report import content, decode_plots, paper, plots
from megatron_ssd.report.benchmarks import BenchmarkRow
from megatron_ssd.report.formatting import UNKNOWN, confidence_text, duration, ends, headline_rows, percent, stage_rows
from megatron_ssd.report.lineage import Lineage
from megatron_ssd.report.problems import SHOWN_HITS
from megatron_ssd.report.problems_page import anchor
from megatron_ssd.report.records import ReportData, Score
from megatron_ssd.report.theme import DARK, LIGHT

SECTIONS = (
    ("result", "Result"),
    ("difficulty", "By difficulty"),
    ("decoding", "Decoding"),
    ("claims", "Claims"),
    ("benchmarks", "Other benchmarks"),
    ("problems", "Problems"),
    ("sampling", "Training data"),
    ("training", "Training"),
    ("deviations", "Deviations"),
    ("examples", "Programs"),
    ("run", "The run"),
    ("lineage", "Lineage"),
)


def render(data: ReportData, lineage: Lineage, benchmarks: Sequence[BenchmarkRow] = ()) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("megatron_ssd.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = environment.get_template("style.css").render(
        light=Markup(LIGHT.css_variables()), dark=Markup(DARK.css_variables())
    )
    page = environment.get_template("report.html.jinja").render(
        data=data,
        style=Markup(style),
        lineage=lineage,
        duration=duration,
        anchor=anchor,
        sections=[section for section in SECTIONS if section[0] != "benchmarks" or benchmarks],
        titles=plots.MODEL_TITLES,
        stages=stage_rows(data.manifests),
        code_version=data.manifests["eval"].code_version,
        **_result_part(data),
        **_decoding_part(data),
        **_problems_part(data),
        **_sampling_part(data),
        **_paper_part(data),
        plots=_plots(data),
        training_note=_training_note(data),
        outcomes=_outcomes(data),
        facts=_facts(data),
        benchmarks=benchmarks,
    )
    return page.lstrip()


def _result_part(data: ReportData) -> dict[str, Any]:
    scores = data.scores
    return {
        "heading": f"Simple self-distillation, {data.run_name}",
        "result": content.result_sentence(scores),
        "measure": content.measure_sentence(scores, data.settings),
        "notice": content.notice(data.settings),
        "confidence": confidence_text(scores.confidence),
        "ks": scores.ks,
        "rows": {row.key: row for row in headline_rows(scores)},
        "ssd": scores.row("ssd_best"),
    }


def _decoding_part(data: ReportData) -> dict[str, Any]:
    return {
        "best_cells": [
            (
                best,
                {name: percent(getattr(best, name)) for name in ("selection", "report", "on_all_problems")},
                [UNKNOWN.value if mean is None else plots.percent_text(mean) for mean in best.grid_means],
            )
            for best in data.scores.sweep.best_cells
        ],
        "train_temperature": f"{data.scores.sweep.train_temperature:g}",
    }


def _problems_part(data: ReportData) -> dict[str, Any]:
    dropped = Counter(data.problems.dropped).most_common()
    return {
        "problems_dropped": [(reason.replace("_", " "), count) for reason, count in dropped if count],
        "shown_hits": data.problems.hits[:SHOWN_HITS],
        "hits_file": HITS_FILE,
    }


def _sampling_part(data: ReportData) -> dict[str, Any]:
    sampling = data.sampling
    total = max(sampling.num_samples, 1)
    not_run = {f"not run: {reason}": count for reason, count in sampling.skip_reasons.items()}
    filtered = {reason.replace("_", " "): n for reason, n in sampling.dropped.items() if reason != "skipped"}
    return {
        "finish_reasons": [
            (content.FINISH_REASONS.get(reason, reason), count, count / total)
            for reason, count in sampling.finish_reasons.items()
        ],
        "dropped": [(reason, count) for reason, count in {**not_run, **filtered}.items() if count],
    }


def _outcomes(data: ReportData) -> list[tuple[str, dict[str, tuple[int, float]]]]:
    """(verdict, model -> (programs, share)), the commonest first."""
    totals: Counter[str] = Counter()
    for counts in data.scores.outcomes.values():
        totals.update(counts)
    return [
        (
            verdict.replace("_", " "),
            {
                model: (counts.get(verdict, 0), counts.get(verdict, 0) / max(sum(counts.values()), 1))
                for model, counts in data.scores.outcomes.items()
            },
        )
        for verdict, _ in totals.most_common()
    ]


def _paper_part(data: ReportData) -> dict[str, Any]:
    found = paper.deviations(data.settings)
    return {
        "paper": {
            "title": paper.TITLE,
            "reference": paper.REFERENCE,
            "model": paper.model_title(paper.reference_model(data.settings)),
        },
        "deviations": [(group, list(items)) for group, items in itertools.groupby(found, key=lambda d: d.group)],
        "sure": content.SURE,
        "differing": sum(item.same is False for item in found),
        "comparable": sum(item.same is not None for item in found),
    }


def _plots(data: ReportData) -> dict[str, Any]:
    scores = data.scores
    base, ssd = scores.row("base_best"), scores.row("ssd_best")
    return {
        "forest": [(k, plots.forest(scores.headline, k)) for k in ends(scores.ks)],
        "difficulty": [(k, plots.by_difficulty(base, ssd, k)) for k in _graded(base)],
        "heat": decode_plots.heat_maps(scores.sweep),
        "heat_legend": decode_plots.heat_legend(decode_plots.value_range(scores.sweep)),
        "effective": decode_plots.effective_plots(scores.sweep),
        "curve_legend": decode_plots.curve_legend(scores.sweep),
        "lengths": plots.histogram(data.sampling.lengths, label="lengths of the sampled responses", unit="tokens"),
        "training": _training_plots(data),
    }


def _graded(base: Score) -> tuple[int, ...]:
    return ends(tuple(base.overall)) if base.by_difficulty else ()


def _training_plots(data: ReportData) -> list[tuple[str, str, Markup]]:
    panels = (
        ("Loss", "nats a response token", "loss", False),
        ("Gradient norm", "before clipping", "grad_norm", True),
        ("Learning rate", "", "learning_rate", True),
        ("Throughput", "tokens a second", "tokens_per_second", True),
    )
    points, _ = plots.thin(data.training)
    return [
        (
            title,
            note,
            plots.curve([(p.iteration, getattr(p, name)) for p in points], label=title, from_zero=from_zero),
        )
        for title, note, name, from_zero in panels
    ]


def _training_note(data: ReportData) -> str:
    if not data.training:
        return f"No iteration was logged.{_skipped(data)}"
    last = data.training[-1]
    manifest = data.manifests["checkpoints"]
    _, size = plots.thin(data.training)
    averaged = f" Each point of the curves is the mean of {size} iterations." if size > 1 else ""
    notes = averaged + _skipped(data)
    rates = sorted(point.tokens_per_second for point in data.training)
    epochs = f" ({manifest.facts['epochs']:.2g} epochs)" if "epochs" in manifest.facts else ""
    return (
        f"{last.iteration:,} iterations{epochs} in {duration(manifest.seconds)}, "
        f"{rates[len(rates) // 2]:,.0f} tokens a second at the median; the last loss is {last.loss:.3f}.{notes}"
    )


def _skipped(data: ReportData) -> str:
    if not data.num_skipped:
        return ""
    return f" Left out, because loss or gradient was not finite and no weight changed: {data.num_skipped:,} iterations."


def _facts(data: ReportData) -> list[tuple[str, str]]:
    manifest = data.manifests["eval"]
    host = ", ".join(f"{name} {value}" for name, value in manifest.host.items())
    packages = {name: version for m in data.manifests.values() for name, version in m.packages.items()}
    facts = [
        ("model", str(data.settings.get("model.name"))),
        ("seed", f"{data.settings.get('seed')} (run), {data.settings.get('minicode.seed')} (minicode world)"),
        ("device", str(data.settings.get("cluster.device"))),
        ("host", host),
        ("packages", ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))),
        ("code", ", ".join(sorted({m.code_version for m in data.manifests.values()}))),
        ("all stages", duration(sum(m.seconds for m in data.manifests.values()))),
    ]
    return [(name, value) for name, value in facts if value]
