"""Tests for ``problems.html`` in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.formatting import anchor, visible
from tests.helpers.browsing import Visit
from tests.helpers.problems_run import HOSTILE, RUN, Try, read, write_evaluation, write_page

SHOWN = "[...document.querySelectorAll('#rows > tr')].filter(r => r.checkVisibility()).map(r => r.dataset.anchor)"
IDS = [anchor(problem.id) for problem, *_ in RUN]
HOSTILE_ID = RUN[-1][0].id


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the made-up run."""
    folder = tmp_path_factory.mktemp("problems")
    found = write_evaluation(folder / "eval", RUN)
    return write_page(folder / "problems.html", read(folder / "eval", found))


@pytest.fixture(scope="module")
def list_page(browser: Any, path: Path) -> Iterator[Visit]:
    """A wide page with the list. A test that changes it must reset it."""
    with Visit(browser, path, width=1280) as visit:
        yield visit


def opened(visit: Visit) -> str:
    """The heading of the problem that is open."""
    visit.page.wait_for_selector("#problem h1")
    return visit.page.locator("#problem h1").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_requests_nothing_logs_nothing_and_does_not_scroll_horizontally(
    browser: Any, path: Path, width: int, scheme: str
) -> None:
    with Visit(browser, path, width=width, scheme=scheme) as visit:
        for one in ("", *IDS):
            if one:
                visit.page.evaluate("hash => { location.hash = hash; }", one)
                visit.wait_until(f"document.querySelector('#problem .statement') && location.hash === '#{one}'")
                visit.page.get_by_role("button", name="open all").click()
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert {url for url in visit.requests if not url.startswith("data:")} == {path.as_uri()}
        assert visit.complaints == []


@pytest.mark.parametrize(
    ("control", "value", "expected"),
    [
        ("difficulty", "medium", IDS[2:4]),
        ("solved", "ssd", [IDS[1], IDS[4]]),
        ("solved", "both", IDS[:1]),
        ("solved", "base", [IDS[2], IDS[5]]),
        ("solved", "neither", [IDS[3]]),
        ("status", "timeout", [IDS[2], IDS[4]]),
        ("status", "memory", [IDS[1]]),
        ("status", "infrastructure_error", [IDS[3]]),
        ("status", "no_code", [IDS[3]]),
        ("half", "reporting", [IDS[1], IDS[3], IDS[5]]),
    ],
)
def test_a_filter_shows_its_problems_and_reset_shows_all(
    list_page: Visit, control: str, value: str, expected: list[str]
) -> None:
    page = list_page.page
    page.select_option(f"#{control}", value)
    assert page.evaluate(SHOWN) == expected
    assert page.locator("#shown").inner_text().startswith(f"{len(expected)} of 6 problems")
    page.get_by_role("button", name="reset").click()
    assert page.evaluate(SHOWN) == IDS


def test_search_and_filters_combine_and_update_the_means(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=1280) as visit:
        assert visit.page.locator("#shown").inner_text() == (
            "6 of 6 problems; pass@1 on them: base 22.2 %, SSD 33.3 %."  # (2+0+1+0+0+1)/18; (3+2+0+1+0)/3/6
        )
        visit.page.keyboard.press("/")
        visit.page.keyboard.type("SUM")
        assert visit.page.evaluate(SHOWN) == [IDS[1]]
        assert visit.page.locator("#shown").inner_text() == ("1 of 6 problems; pass@1 on them: base 0.0 %, SSD 66.7 %.")
        visit.page.select_option("#difficulty", "hard")
        assert visit.page.evaluate(SHOWN) == []
        assert "base \u2013" in visit.page.locator("#shown").inner_text()


def test_headers_sort_in_both_directions(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=1280) as visit:
        change = visit.page.locator("th[data-key=change]")
        change.get_by_role("button").click()
        assert visit.page.evaluate(SHOWN) == [IDS[1], IDS[0], IDS[4], IDS[3], IDS[2], IDS[5]]
        assert change.get_attribute("aria-sort") == "descending"
        change.get_by_role("button").press("Enter")
        assert visit.page.evaluate(SHOWN) == [IDS[2], IDS[5], IDS[3], IDS[0], IDS[4], IDS[1]]
        visit.page.locator("th[data-key=difficulty] button").click()
        assert visit.page.evaluate(SHOWN) == IDS  # easy, medium, hard
        assert change.get_attribute("aria-sort") is None


def test_a_narrow_page_has_its_own_control_for_sorting(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=400) as visit:
        visit.page.select_option("#sort", "date")
        visit.page.get_by_role("button", name="reverse").click()
        dates = [visit.page.locator(f"tr[data-anchor='{one}']").get_attribute("data-date") for one in IDS[:5]]
        shown = [one for one in visit.page.evaluate(SHOWN) if one in IDS[:5]]
        assert shown == sorted(IDS[:5], key=lambda one: dates[IDS.index(one)] or "", reverse=True)


def test_a_problem_shows_each_attempt_with_its_verdict_tests_and_texts(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=1280, anchor=IDS[3]) as visit:
        assert opened(visit) == "A^n - 1"
        attempt = visit.page.locator("#ssd-2")
        assert attempt.locator("header").inner_text().split("\n") == ["SSD 2", "wrong answer", "11 of 12 tests"]
        assert attempt.locator(".note").inner_text() == "stopped by itself, 42 tokens"
        assert attempt.locator(".cells i").count() == 12
        assert attempt.locator(".cells").get_attribute("aria-label") == "tests: 11 passed, 1 wrong answer"
        terms = attempt.locator("dl.failure dt").all_inner_texts()
        assert terms == ["first failing test", "input", "expected", "grading"]
        values = attempt.locator("dl.failure dd").all_inner_texts()
        test = RUN[3][0].tests[11]
        assert values[0] == "12 of 12"
        assert f"{len(test.input) - 400} characters left out" in values[1]
        assert values[2:] == [test.output, "line 1: expected '12', got '7'"]
        attempt.get_by_text("Program, the same as SSD 0").click()
        assert attempt.locator("pre[aria-label='program of SSD 2']").inner_text() == Try.program
        attempt.get_by_text("Whole response").click()
        assert f"first.\n```python\n{Try.program}```\nThat" in attempt.locator("details pre").last.inner_text()
        cut = visit.page.locator("#base-0")
        cut.locator("summary").click()
        assert "95,232 characters left out" in cut.locator("details pre").inner_text()
        assert "cut at the length limit" in cut.locator(".note").inner_text()


def test_a_repeated_program_refers_to_the_first_one(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=1280, anchor=IDS[0]) as visit:
        opened(visit)
        assert visit.page.locator("#base-0 summary").first.inner_text() == "Program, 3 lines"
        assert visit.page.locator("#ssd-1 summary").first.inner_text() == "Program, the same as base 0"
        assert visit.page.locator("#base-0 details").first.get_attribute("open") is not None
        visit.page.get_by_role("button", name="close all").click()
        assert visit.page.locator(".pair details[open]").count() == 0


def test_mouse_and_keyboard_open_and_close_problems(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=1280) as visit:
        visit.page.locator("tr", has_text="Happy New Year").locator("td").first.click()
        assert opened(visit) == "Happy New Year"
        assert visit.page.locator("#list").is_hidden()
        visit.page.keyboard.press("Escape")
        visit.page.wait_for_selector("#list", state="visible")
        assert visit.page.evaluate("document.activeElement.textContent") == "Happy New Year"
        visit.page.select_option("#solved", "ssd")
        visit.page.get_by_role("link", name="9x9 Sum").press("Enter")
        assert opened(visit) == "9x9 Sum"
        assert visit.page.evaluate("document.activeElement.tagName") == "H1"
        visit.page.keyboard.press("ArrowRight")  # to the next problem that the filter shows
        visit.page.locator("#problem h1", has_text="Find").wait_for()
        visit.page.keyboard.press("ArrowRight")  # does nothing, since it is the last one
        visit.page.locator(".statement").press("ArrowLeft")  # scrolls the text instead
        assert visit.page.evaluate("location.hash") == f"#{IDS[4]}"
        visit.page.get_by_role("link", name="All problems").click()
        visit.page.wait_for_selector("#list", state="visible")
        assert visit.page.evaluate(SHOWN) == [IDS[1], IDS[4]]
        visit.page.go_back()
        assert opened(visit).startswith("Find")
        assert visit.complaints == []


def test_an_address_without_a_problem_shows_the_list(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=1280, anchor="%E0%A4%A") as visit:
        assert visit.page.evaluate(SHOWN) == IDS
        assert visit.complaints == []


def test_hostile_text_is_never_markup(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=1280, anchor=anchor(HOSTILE_ID)) as visit:
        assert opened(visit) == visible(HOSTILE)
        visit.page.get_by_role("button", name="open all").click()
        assert visit.page.evaluate("typeof window.attacked") == "undefined"
        assert visit.page.locator("img, iframe, object").count() == 0
        assert visit.page.locator("#problem script").count() == 0
        program = visit.page.locator("pre[aria-label='program of base 0']").evaluate("e => e.textContent")
        assert program == f"{visible(HOSTILE)}\n# wrong_answer\n"
        assert visible(HOSTILE) in visit.page.locator(".statement").evaluate("e => e.textContent")
        assert visit.page.title().startswith("</script></pre>")


def test_the_content_security_policy_blocks_an_injected_script(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=1280) as visit:
        visit.page.evaluate(
            """() => { const s = document.createElement('script'); s.textContent = 'window.attacked = 3';
                       document.body.append(s); const i = new Image(); i.src = 'http://example.com/x.png';
                       document.body.append(i); }"""
        )
        assert visit.page.evaluate("typeof window.attacked") == "undefined"
        assert any("Content Security Policy" in text for text in visit.complaints)


def test_a_damaged_block_is_reported_on_the_page(browser: Any, path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    damaged = tmp_path / "damaged.html"
    begin = text.index('id="block-0">') + len('id="block-0">')
    damaged.write_text(text[: begin + 40] + text[text.index("</script>", begin) :], encoding="utf-8")
    with Visit(browser, damaged, width=1280, anchor=IDS[0]) as visit:
        visit.page.wait_for_selector("#problem .notice")
        assert "make the report again" in visit.page.locator("#problem").inner_text()


def test_without_scripts_the_page_is_a_plain_list(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=1280, scripts=False) as visit:
        assert visit.page.locator("#rows tr:visible").count() == len(RUN)
        assert visit.page.locator("#filters").is_hidden()
        assert visit.page.locator("button:visible").count() == 0
        assert "Scripts are off" in visit.page.locator("noscript").inner_text()
        assert visit.page.locator("tr", has_text="Happy New Year").inner_text().split() == [
            "Happy", "New", "Year", "abc387_a", "easy", "2025-02-15", "selection", "2/3", "3/3", "+33.3",
        ]  # fmt: skip


def test_the_printed_page_is_light_and_has_no_controls(browser: Any, path: Path) -> None:
    with Visit(browser, path, width=1280, scheme="dark") as visit:
        visit.page.emulate_media(media="print")
        assert visit.page.locator("#filters").is_hidden()
        assert visit.page.locator("#rows tr:visible").count() == len(RUN)
        assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_report_and_problems_link_to_each_other(browser: Any, published: Path) -> None:
    with Visit(browser, published / "report" / "report.html", width=1280) as visit:
        visit.page.get_by_role("link", name="Every problem", exact=True).click()
        visit.page.wait_for_selector("#rows tr")
        assert visit.page.locator("#rows tr").count() == 9
        visit.page.get_by_role("link", name="easy-001").click()
        assert "0/1 passed" in visit.page.locator("#problem .scores").inner_text()
        visit.page.get_by_role("link", name="Report of demo").click()
        visit.page.locator("#minicode-examples").get_by_role("link", name="hard-000").click()
        assert opened(visit) == "hard-000"
        assert visit.complaints == []
