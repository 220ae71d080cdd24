"""The page in a real browser: whole, loading nothing, logging nothing, without sideways scrolling or empty pictures.

Needs Chromium on the machine (``make test`` installs it); without it these tests fail and say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.report.page import SECTIONS
from tests.helpers.browsing import Visit

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")


@pytest.fixture(params=["published", "published_real", "published_sweep", "published_curves"])
def report(request: pytest.FixtureRequest) -> Path:
    """The page of a run on minicode, of one where every score is zero, and of two wide sweeps."""
    return request.getfixturevalue(request.param) / "report" / "report.html"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_loads_nothing_complains_of_nothing_and_does_not_scroll_sideways(
    browser: Any, report: Path, width: int, scheme: str
) -> None:
    with Visit(browser, report, width=width, scheme=scheme) as visit:
        assert [url for url in visit.requests if not url.startswith("data:")] == [report.as_uri()]
        assert visit.complaints == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        wide = visit.page.evaluate(
            """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('pre') && !e.closest('thead')
                   && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert wide == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_section_is_there_and_every_link_leads_to_one(browser: Any, report: Path, width: int) -> None:
    with Visit(browser, report, width=width) as visit:
        sections = visit.page.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
        assert sections == [name for name, _ in SECTIONS]
        assert all(visit.page.locator(f"#{name} h2").inner_text() for name in sections)
        links = visit.page.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
        assert [link for link in links if link.startswith("#")] == [f"#{name}" for name in sections]
        others = [link for link in links if not link.startswith("#")]
        assert {link.partition("#")[0] for link in others} == {"problems.html"}
        assert (report.parent / "problems.html").is_file()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_picture_is_drawn_and_its_text_can_be_read(browser: Any, report: Path, width: int) -> None:
    with Visit(browser, report, width=width) as visit:
        sizes = visit.page.evaluate(
            "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect()).map(r => [r.width, r.height])"
        )
        assert len(sizes) >= 12
        assert all(w > 0 and h > 0 for w, h in sizes)
        smallest = visit.page.evaluate(
            "Math.min(...[...document.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect().height))"
        )
        assert smallest >= 10


@pytest.mark.parametrize("width", WIDTHS)
def test_no_label_of_a_picture_hides_another_or_leaves_it(browser: Any, report: Path, width: int) -> None:
    with Visit(browser, report, width=width) as visit:
        hidden = visit.page.evaluate(
            """() => [...document.querySelectorAll('figure svg, .scale svg')].flatMap(svg => {
                 const whole = svg.getBoundingClientRect();
                 const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
                 const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
                                     && a.top < b.bottom - 3 && b.top < a.bottom - 3;  // line boxes are taller than ink
                 const out = texts.filter(([, r]) => r.left < whole.left - 1 || r.right > whole.right + 1
                                                  || r.bottom > whole.bottom + 3);
                 return [...out.map(([t]) => t), ...texts.flatMap(([t, r], i) =>
                   texts.slice(i + 1).filter(([, q]) => meet(r, q)).map(([u]) => t + ' / ' + u))];
               })"""
        )
        assert hidden == []


def test_schemes_change_the_page_and_its_heat_maps(browser: Any, published: Path) -> None:
    seen = []
    for scheme in SCHEMES:
        with Visit(browser, published / "report" / "report.html", width=1280, scheme=scheme) as visit:
            seen.append(
                visit.page.evaluate(
                    """() => [getComputedStyle(document.body).backgroundColor,
                              getComputedStyle(document.querySelector('rect.heat')).fill]"""
                )
            )
    assert seen[0][0] == "rgb(255, 255, 255)"
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_what_a_model_wrote_stays_text(browser: Any, published: Path) -> None:
    with Visit(browser, published / "report" / "report.html", width=1280) as visit:
        assert visit.page.locator("script, img, iframe, object").count() == 0
        assert "<script>alert(1)</script>" in visit.page.locator("#examples").inner_text()


def test_the_picture_of_the_page_is_not_blank(browser: Any, published: Path) -> None:
    with Visit(browser, published / "report" / "report.html", width=1280) as visit:
        assert len(visit.page.screenshot(full_page=True)) > 100_000
