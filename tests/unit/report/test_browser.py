"""Tests for ``report.html`` in a real browser.

They need Chromium, which ``make test`` installs. Without it they fail and say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.report.page import BENCHMARK_SECTIONS, SECTIONS
from tests.helpers.browsing import Visit

MEBIBYTE = 1 << 20
DRAWN = "[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg'))"


def drawn(visit: Visit) -> Visit:
    """Wait until every plot is drawn, and return the visit."""
    visit.wait_until(DRAWN)
    return visit


@pytest.fixture(
    scope="module",
    params=[(name, width) for name in ("published", "published_real", "published_sweep", "published_curves")
            for width in (1280, 390)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)  # fmt: skip
def visit(request: pytest.FixtureRequest, browser: Any) -> Iterator[Visit]:
    """The pages of four runs, each in a wide and a narrow window."""
    name, width = request.param
    path = request.getfixturevalue(name) / "report" / "report.html"
    scheme = "dark" if (width == 390) == (name == "published") else "light"
    with Visit(browser, path, width=width, scheme=scheme) as visit:
        yield drawn(visit)


@pytest.fixture(scope="module")
def curves(browser: Any, published_curves: Path) -> Iterator[Visit]:
    """A wide page with plots of every kind."""
    with Visit(browser, published_curves / "report" / "report.html", width=1280) as visit:
        yield drawn(visit)


def test_the_page_requests_nothing_and_logs_nothing(visit: Visit) -> None:
    assert [url for url in visit.requests if not url.startswith("data:")] == [visit.path.as_uri()]
    assert visit.complaints == []
    assert visit.path.stat().st_size < 3 * MEBIBYTE


def test_the_page_does_not_scroll_horizontally(visit: Visit) -> None:
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    wide = visit.page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('pre, thead, svg')
               && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def test_every_section_exists_and_every_link_has_a_target(visit: Visit) -> None:
    sections = visit.page.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    benchmark = "livecodebench" if sections[0].startswith("livecodebench") else "minicode"
    assert sections == [*(f"{benchmark}-{name}" for name, _ in BENCHMARK_SECTIONS), *(name for name, _ in SECTIONS)]
    assert all(visit.page.locator(f"#{name} h2").inner_text() for name in sections)
    links = visit.page.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    assert [link for link in links if link.startswith("#")] == [f"#{name}" for name in sections]
    assert {link.partition("#")[0] for link in links if not link.startswith("#")} == {f"problems-{benchmark}.html"}
    assert (visit.path.parent / f"problems-{benchmark}.html").is_file()


def test_every_plot_fills_its_figure_and_has_readable_text(visit: Visit) -> None:
    plots = visit.page.evaluate(
        """() => [...document.querySelectorAll('.chart')].map(chart => {
             const svg = chart.querySelector('svg'), [box, own] = [chart, svg].map(e => e.getBoundingClientRect());
             return [own.height, own.width / box.width, chart.querySelector('[aria-label]')?.ariaLabel]; })"""
    )
    assert len(plots) >= 11
    assert [plot for plot in plots if not (plot[0] > 40 and 0.9 < plot[1] <= 1.01 and plot[2])] == []
    smallest = visit.page.evaluate(
        "Math.min(...[...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect().height))"
    )
    assert smallest >= 10


def test_labels_are_inside_of_their_plot_and_do_not_overlap(visit: Visit) -> None:
    hidden = visit.page.evaluate(
        """() => [...document.querySelectorAll('.chart svg')].flatMap(svg => {
             const frame = svg.getBoundingClientRect();
             const shown = [...svg.querySelectorAll('text')].filter(t => t.getAttribute('opacity') !== '0');
             const texts = shown.map(t => [t.textContent, t.getBoundingClientRect()]);
             const overlap = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
                                 && a.top < b.bottom - 3 && b.top < a.bottom - 3;  // line boxes are taller than ink
             const out = texts.filter(([, r]) => r.left < frame.left - 1 || r.right > frame.right + 1
                                              || r.bottom > frame.bottom + 3);
             return [...out.map(([t]) => t), ...texts.flatMap(([t, r], i) =>
               texts.slice(i + 1).filter(([, q]) => overlap(r, q)).map(([u]) => t + ' / ' + u))];
           })"""
    )
    assert hidden == []


@pytest.mark.parametrize(
    ("section", "mark", "expected"),
    [
        ("minicode-result", ".mark-symbol.role-mark path", ["base at its default decode", "27.6", "23.9 to 31.3"]),
        ("minicode-decoding", ".mark-rect.role-mark path", ["T0.7-k20-p0.8", "score, %"]),
        ("sampling", ".mark-rect.role-mark path", ["tokens", "count"]),
    ],
)
def test_a_tooltip_shows_the_numbers_of_a_mark(curves: Visit, section: str, mark: str, expected: list[str]) -> None:
    curves.page.locator(f"#{section} .chart {mark}").first.hover(force=True)
    tooltip = curves.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    for text in expected:
        assert text in tooltip.inner_text()
    curves.page.mouse.move(1, 1)


def test_a_tooltip_near_a_curve_shows_the_nearest_iteration(curves: Visit) -> None:
    chart = curves.page.locator("#training .chart").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    curves.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tooltip = curves.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert {"iteration", "loss"} <= set(tooltip.inner_text().split())
    curves.page.mouse.move(1, 1)


@pytest.mark.parametrize(
    ("section", "name"), [("minicode-result", "SSD"), ("minicode-decoding", "base"), ("minicode-decoding", "0.95")]
)
def test_a_click_on_a_legend_dims_the_other_series_until_the_next_click(curves: Visit, section: str, name: str) -> None:
    chart = f"[...document.querySelectorAll('#{section} .chart')].find(chart => chart.querySelector('.role-legend'))"
    dimmed = (
        f"[...{chart}.querySelectorAll('.role-mark path')].filter(p => p.getAttribute('opacity') === '0.12').length"
    )
    legend = curves.page.locator(f"#{section} .chart .role-legend-label text", has_text=name).first
    assert curves.page.evaluate(dimmed) == 0
    legend.click(force=True)
    curves.wait_until(f"{dimmed} > 0")
    marks = curves.page.evaluate(f"{chart}.querySelectorAll('.mark-symbol.role-mark path').length")
    assert curves.page.evaluate(dimmed) < marks
    legend.click(force=True)
    curves.wait_until(f"{dimmed} === 0")
    assert curves.complaints == []


def test_the_color_scheme_changes_page_and_plots(curves: Visit) -> None:
    colors = """() => [getComputedStyle(document.body).backgroundColor,
                       ...['.mark-rect.role-mark path', '.mark-symbol.role-mark path', '.role-axis-label text'].map(
                         mark => getComputedStyle(document.querySelector(`#minicode-decoding ${mark}`)).fill)]"""
    light = curves.page.evaluate(colors)
    curves.page.emulate_media(color_scheme="dark")
    dark = curves.page.evaluate(colors)
    curves.page.emulate_media(color_scheme="dark", media="print")
    printed = curves.page.evaluate(colors)
    curves.page.emulate_media(color_scheme="light", media="screen")
    assert light[0] == "rgb(255, 255, 255)"
    assert all(one != other and "rgb" in one for one, other in zip(light, dark, strict=True))
    assert printed == light


def test_plots_follow_the_width_of_the_window(curves: Visit) -> None:
    width = "document.querySelector('#training .chart svg').getBoundingClientRect().width"
    before = curves.page.evaluate(width)
    curves.page.set_viewport_size({"width": 390, "height": 900})
    curves.wait_until(f"{width} < {before - 50}")
    curves.page.set_viewport_size({"width": 1280, "height": 900})


def test_without_scripts_every_plot_is_described_in_words(browser: Any, published: Path) -> None:
    with Visit(browser, published / "report" / "report.html", width=1280, scripts=False) as visit:
        assert (
            "base at its best, base: 33.5 (29.8 to 37.2)"
            in visit.page.locator("#minicode-result .chart").first.inner_text()
        )
        assert "T1.8-k20-p0.5" in visit.page.locator("#minicode-decoding .chart").first.inner_text()
        assert "Scripts are off" in visit.page.locator("noscript").inner_text()
        assert visit.page.locator(".chart svg").count() == 0


def test_text_of_a_model_is_never_markup(browser: Any, published: Path) -> None:
    with Visit(browser, published / "report" / "report.html", width=1280) as visit:
        assert visit.page.locator("img, iframe, object").count() == 0
        assert visit.page.locator("script:not([type='application/json'])").count() == 1
        assert "<script>alert(1)</script>" in visit.page.locator("#minicode-examples").inner_text()
        visit.page.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'window.attacked = 1';"
            " document.body.append(s); }"
        )
        assert visit.page.evaluate("typeof window.attacked") == "undefined"
        assert any("Content Security Policy" in text for text in visit.complaints)
