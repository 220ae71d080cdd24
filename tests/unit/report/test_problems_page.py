"""Tests for the content of ``problems.html``."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import random
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.evaluation.problem_file import Excerpt, read_problems
from megatron_ssd.formatting import anchor, visible
from megatron_ssd.report.attempts import MOST_KEPT, Attempt, ProblemPage, ProblemPages
from megatron_ssd.report.problems_page import LIMITS, MEBIBYTE, OUTCOMES, block, fit_blocks, pack
from megatron_ssd.report.theme import contrast_ratio, text_on
from megatron_ssd.schema import Verdict
from tests.helpers.problems_run import HOSTILE, RUN, Try, problem, read, scores, tries, write_evaluation, write_page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> ProblemPages:
    """The made-up run as the report reads it."""
    folder = tmp_path_factory.mktemp("eval")
    return read(folder, write_evaluation(folder, RUN))


def unpack(text: str) -> dict[str, Any]:
    """The data that the page's script decodes from a block."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


def test_each_problem_has_its_counts_change_and_outcomes(pages: ProblemPages) -> None:
    assert [page.problem_id for page in pages.problems] == [one.id for one, *_ in RUN]
    assert [page.solved for page in pages.problems] == ["both", "ssd", "base", "neither", "ssd", "base"]
    assert [page.passed(0) for page in pages.problems] == [(2, 3), (0, 3), (1, 3), (0, 3), (0, 3), (1, 3)]
    assert pages.problems[3].passed(1) == (0, 2)  # an infrastructure error is not counted
    assert pages.problems[1].change == pytest.approx(2 / 3)
    assert pages.problems[3].statuses == ["infrastructure_error", "no_code", "syntax_error", "wrong_answer"]
    assert [page.half for page in pages.problems[:2]] == ["selection", "reporting"]
    assert pages.difficulties == ("easy", "medium", "hard")


def test_a_response_is_split_into_its_program_and_the_text_around_it(pages: ProblemPages) -> None:
    attempt = pages.problems[0].attempts[0][0]
    assert attempt.program is not None
    assert attempt.program.head == f"{Try.program}# passed\n"
    assert attempt.before.head + attempt.program.head + attempt.after.head == (
        f"I think about it first.\n```python\n{Try.program}# passed\n```\nThat is all."
    )
    without = pages.problems[3].attempts[0][0]
    assert without.program is None
    assert len(without.before.head) + len(without.before.tail) == MOST_KEPT
    assert without.before.left_out == 32 * 4000 - MOST_KEPT


def test_only_first_failed_tests_are_kept_and_they_are_cut(pages: ProblemPages) -> None:
    assert {index for page in pages.problems for index in page.tests} == {0, 2, 11}
    given, expected = pages.problems[3].tests[11]
    test = RUN[3][0].tests[11]
    assert len(given.head + given.tail) == 400
    assert (given.head[:20], given.tail[-20:]) == (test.input[:20], test.input[-20:])
    assert given.left_out == len(test.input) - 400
    assert expected == Excerpt(test.output)


@pytest.mark.parametrize("limit", [0, 1, 7, 10, 11])
def test_an_excerpt_keeps_both_ends_even_if_it_is_cut_again(limit: int) -> None:
    text = "0123456789"
    cut = Excerpt.of(text, limit)
    assert len(cut.head + cut.tail) == min(limit, 10)
    assert text == cut.head + text[len(cut.head) :][: cut.left_out] + cut.tail
    assert Excerpt.of(text, 8).shortened(limit) == (cut if limit < 8 else Excerpt.of(text, 8))
    assert Excerpt.from_json(json.loads(json.dumps(cut.to_json()))) == cut


def test_a_problem_without_a_title_has_the_first_line_of_its_statement_as_title(tmp_path: Path) -> None:
    run = [(problem(name, "easy"), tries("passed"), tries("passed")) for name in ("short", "long")]
    run[1] = (replace(run[1][0], statement="a word " * 20), *run[1][1:])
    pages = read(tmp_path, write_evaluation(tmp_path, run))
    assert [page.title for page in pages.problems] == ["Read a list, keep the numbers above 3 and double each.", ""]


def test_an_evaluation_without_a_problems_file_shows_the_prompt_instead(tmp_path: Path) -> None:
    pages = read(tmp_path, write_evaluation(tmp_path, RUN, with_problems=False))
    assert not pages.has_tests
    assert pages.problems[0].statement.head == RUN[0][0].statement
    assert pages.problems[0].tests == {}
    assert "kept no texts of its problems" in write_page(tmp_path / "page.html", pages).read_text()


def test_generations_and_verdicts_of_other_samples_are_refused(tmp_path: Path) -> None:
    found = write_evaluation(tmp_path, RUN)
    with pytest.raises(UserError, match=r"problem more is in the generations of base or in summary\.json, not"):
        read(tmp_path, dataclasses.replace(found, difficulties={**found.difficulties, "more": "easy"}))
    verdicts = tmp_path / "verdicts" / "ssd" / "T1.5-k20-p0.8.jsonl"
    lines = verdicts.read_text(encoding="utf-8").splitlines(keepends=True)
    verdicts.write_text("".join([*lines, lines[0].replace('"sample_index": 0', '"sample_index": 7')]))
    with pytest.raises(UserError, match=r"no response to verdict \('abc387_a', 7\)"):
        read(tmp_path, found)
    verdicts.write_text("".join(lines[1:]))
    with pytest.raises(UserError, match=r"no verdict on sample \('abc387_a', 0\).*replace=true"):
        read(tmp_path, found)


def test_a_problems_file_of_another_version_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"id": "a", "statement": 3, "tests": []}\n')
    with pytest.raises(UserError, match=r"problems\.jsonl:1: is not a problem of this version"):
        read_problems(path)


def test_only_invisible_characters_are_replaced() -> None:
    assert visible("a\tb\n\r\u00e9 \U0001f600 \u4f60") == "a\tb\n\r\u00e9 \U0001f600 \u4f60"
    assert visible("\x00\u202e\ud83d\ufeff") == "⟨U+0000⟩⟨U+202E⟩⟨U+D83D⟩⟨U+FEFF⟩"
    visible(HOSTILE).encode("utf-8")


def test_blocks_contain_each_text_once_and_no_markup(pages: ProblemPages) -> None:
    packed = pack(block(pages.problems[-1], 1000))
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed)
    data = unpack(packed)
    assert len(data["texts"]) == len({json.dumps(text) for text in data["texts"]})
    programs = {attempt["program"] for column in data["columns"] for attempt in column}
    assert len(programs) == 3  # of six, one per verdict
    assert {data["texts"][number].splitlines()[0] for number in programs} == {visible(HOSTILE)}


def test_texts_of_models_and_benchmarks_are_never_markup_in_the_page(pages: ProblemPages, tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.html", pages).read_text(encoding="utf-8")
    assert "attacked" in page  # as text of the title
    assert "<script>window" not in page
    assert "onerror='" not in page
    assert page.count("<script") == page.count("</script>") == 2 + len(RUN)
    assert f'data-anchor="{html.escape(anchor(RUN[-1][0].id))}"' in page
    assert "demo &lt;run&gt;" in page


def test_the_content_security_policy_has_the_hashes_of_style_and_script(pages: ProblemPages, tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.html", pages).read_text(encoding="utf-8")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])  # type: ignore[index]
    for name in ("script", "style"):
        text = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)[-1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "://" not in re.sub(r"<script type=.*?</script>", "", page, flags=re.DOTALL)


def test_every_verdict_is_readable_on_its_color_in_both_schemes() -> None:
    for outcome in OUTCOMES.values():
        for color in (outcome.light, outcome.dark):
            assert contrast_ratio(text_on(color), color) >= 4.5
    assert len({outcome.letter for outcome in OUTCOMES.values()}) == len(OUTCOMES)


# The size of the page.


def _words(rng: random.Random) -> str:
    """4 MB of made-up text, which compresses to a third, about as much as the text of a reasoning model."""
    vocabulary = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 9))) for _ in range(6000)]
    return " ".join(rng.choices(vocabulary, weights=[1 / (rank + 5) for rank in range(6000)], k=700_000))


def _of_livecodebench(num_problems: int) -> ProblemPages:
    """Ten programs of two models per problem. Half of the responses have 32K tokens, which are 130,000 characters."""
    rng = random.Random(5)
    text = _words(rng)

    def attempt(index: int) -> Attempt:
        length = 130_000 if rng.random() < 0.5 else rng.randrange(4_000, 60_000)
        start = rng.randrange(len(text) - length)
        failed = rng.randrange(40)
        verdict = Verdict(
            problem_id="p", sample_index=index, status="wrong_answer", tests_passed=failed, tests_total=43,
            by_test="." * failed + "W", failed_test=failed, detail=text[start : start + 80],
        )  # fmt: skip
        return Attempt(
            verdict=verdict, finish_reason="stop", num_tokens=length // 4,
            before=Excerpt.of(text[start : start + length], MOST_KEPT),
            program=Excerpt(text[start : start + rng.randrange(600, 3000)]), after=Excerpt(text[start : start + 400]),
        )  # fmt: skip

    problems = tuple(
        ProblemPage(
            problem_id=f"abc{number}", title=f"Problem {number}", difficulty="hard", date="2025-03-01",
            half="reporting", prompt=Excerpt(""), statement=Excerpt(text[number * 3000 :][:3000]), starter_code="",
            has_checks=False,
            tests={test: (Excerpt.of(text[test * 900 :][:5000], 400), Excerpt("7")) for test in range(12)},
            attempts=tuple(tuple(attempt(index) for index in range(10)) for _ in range(2)),
        )
        for number in range(num_problems)
    )  # fmt: skip
    found = scores({one.problem_id: "hard" for one in problems})
    return ProblemPages(problems=problems, columns=found.headline, difficulties=("hard",), has_tests=True)


@pytest.mark.parametrize(("num_problems", "scale"), [(32, 1 / 4), pytest.param(131, 1, marks=pytest.mark.slow)])
def test_livecodebench_fits_the_budget_and_the_page_says_what_was_cut(
    tmp_path: Path, num_problems: int, scale: float
) -> None:
    pages = _of_livecodebench(num_problems)
    for page_mib in (8 * scale, 2 * scale):
        path = write_page(tmp_path / "page.html", pages, page_mib=page_mib)
        note = re.search(
            rf"([\d,]+) of {20 * num_problems:,} responses are cut in the middle.*?: ([\d,]+) characters are kept",
            path.read_text(),
        )
        assert note is not None
        size, limit = path.stat().st_size, int(note[2].replace(",", ""))
        print(f"{page_mib} MiB: {size / MEBIBYTE:.2f} MiB with {limit} characters around each program")
        assert size <= page_mib * MEBIBYTE
        assert limit in LIMITS
        assert limit >= (2048 if page_mib == 8 * scale else 128)
    raw = sum(len(json.dumps(block(page, 2048))) for page in pages.problems)
    packed = sum(len(pack(block(page, 2048))) for page in pages.problems)
    print(f"packing: {raw / MEBIBYTE:.1f} MiB of JSON in {packed / MEBIBYTE:.1f} MiB")
    assert packed < 0.7 * raw  # otherwise the script that unpacks would not be worth it


def test_a_smaller_limit_is_used_only_if_the_larger_does_not_fit(pages: ProblemPages) -> None:
    largest = fit_blocks(pages.problems, 10 * MEBIBYTE, page_mib=10)
    assert largest.limit == MOST_KEPT
    assert largest.num_cut == 3  # those that are longer than the largest limit
    size = sum(len(text) + 64 for text in largest.texts)
    assert fit_blocks(pages.problems, size, page_mib=1).limit == MOST_KEPT
    assert fit_blocks(pages.problems, size - 1, page_mib=1).limit < MOST_KEPT


def test_a_budget_that_is_too_small_for_the_list_is_an_error(pages: ProblemPages, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"report\.page_mib = 0\.01: 6 problems do not fit.*0\.02"):
        write_page(tmp_path / "page.html", pages, page_mib=0.01)


def test_equal_programs_of_a_problem_are_stored_once(tmp_path: Path) -> None:
    same = [(problem("a", "easy", "A"), tries(*["wrong_answer"] * 10), tries(*["wrong_answer"] * 10))]
    pages = read(tmp_path, write_evaluation(tmp_path, same))
    data = block(pages.problems[0], 1000)
    assert sum(text == f"{Try.program}# wrong_answer\n" for text in data["texts"]) == 1
