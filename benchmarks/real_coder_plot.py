"""Draws the experiment on real models from its committed results: pass@1 over the decode temperature.

Base and tuned model have a line each, with bands of 95 % bootstrap intervals over problems. Each top-p has a panel.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import altair as alt

from benchmarks.real_coder_cells import QWEN
from benchmarks.real_coder_results import RESULTS
from benchmarks.real_coder_table import SEEDS, suites
from megatron_ssd.errors import UserError
from megatron_ssd.grading.metrics import Bootstrap

IMAGE = RESULTS.parents[1] / "images/real_coder.png"
_LABEL = re.compile(r"T(?P<temperature>[\d.]+)-k20-p(?P<top_p>[\d.]+)")
_COLORS = {"base": "#5b6470", "SSD": "#c4561a"}
_WIDTH, _HEIGHT, _PIXELS_PER_POINT = 340, 240, 2


def draw(results: Path, image: Path) -> None:
    """Write the picture as PNG. Raises ``UserError`` if no test cell of Qwen is finished."""
    rows = list(_rows(results))
    if not rows:
        raise UserError(f"folder {results}", rule="has no results of the test problems",
                        fix="run the cells first: python -m benchmarks.real_coder run --help")  # fmt: skip
    titles = [f"top-p {top_p:g}" for top_p in sorted({row["top_p"] for row in rows})]
    panels = [_panel([row for row in rows if row["panel"] == title], title) for title in titles]
    with alt.theme.enable("default"):  # the report's theme has the colors of its page
        chart = alt.hconcat(*panels).resolve_scale(y="shared").configure(background="white", font="sans-serif")
        chart.save(image, scale_factor=_PIXELS_PER_POINT)


def _rows(results: Path) -> list[dict[str, Any]]:
    """A row for each model and setting with its interval in percent."""
    suite = suites(results).get((QWEN, "test"))
    found = []
    for (title, label), scores in ({} if suite is None else suite.scores).items():
        parts = _LABEL.fullmatch(label)
        if parts and title in ("base", SEEDS[0]):
            estimate = Bootstrap().mean(scores)
            top_p = float(parts["top_p"])
            found.append({
                "model": title, "temperature": float(parts["temperature"]), "top_p": top_p, "panel": f"top-p {top_p:g}",
                "value": 100 * estimate.value, "low": 100 * estimate.low, "high": 100 * estimate.high,
            })  # fmt: skip
    return found


def _panel(rows: list[dict[str, Any]], title: str) -> alt.LayerChart:
    models = [model for model in _COLORS if any(row["model"] == model for row in rows)]
    color = alt.Color("model:N", title=None, legend=alt.Legend(orient="top"),
                      scale=alt.Scale(domain=models, range=[_COLORS[model] for model in models]))  # fmt: skip
    chart = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("temperature:Q", title="decode temperature", scale=alt.Scale(zero=False, padding=12)), color=color
    )
    axis = alt.Axis(title="pass@1, %")
    band = chart.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", axis=axis), y2="high:Q")
    line = chart.mark_line(point=True).encode(y=alt.Y("value:Q", axis=axis))
    return alt.layer(band, line).properties(title=title, width=_WIDTH, height=_HEIGHT)
