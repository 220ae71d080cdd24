"""Tests each filter by itself, and which reason is given if several apply."""

import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.config.dataset import FilterConfig, LoopConfig
from megatron_ssd.dataset.filters import FilteredSample, parses
from megatron_ssd.errors import ConfigError
from megatron_ssd.schema import Sample
from tests.helpers.errors import one_line_error
from tests.helpers.samples_run import PROGRAM, sample

OFF = {"drop_empty": False, "drop_one_line_stubs": False}


def reason_for(one: Sample, **filters: object) -> str | None:
    return FilteredSample(one, FilterConfig(**filters)).reason  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "empty"),
        (" \n\t\n", "empty"),
        ("pass", "one_line_stub"),
        ("\n\nI cannot solve this.\n", "one_line_stub"),
        ("```python\npass\n```", "one_line_stub"),
        ("def f(x):\n    return x", None),
        (PROGRAM, None),
    ],
)
def test_the_filters_of_the_paper(response: str, reason: str | None) -> None:
    assert reason_for(sample(response)) == reason


def test_filters_can_be_off_but_skipped_prompts_are_always_dropped() -> None:
    assert reason_for(sample(""), **OFF) is None
    assert reason_for(sample("pass"), **OFF) is None
    assert reason_for(sample("", finish_reason="skipped"), **OFF) == "skipped"


def test_token_bounds_are_inclusive() -> None:
    lengths = {length: reason_for(sample(PROGRAM, token_ids=(2,) * length), min_response_tokens=2,
                                  max_response_tokens=3) for length in range(1, 5)}  # fmt: skip
    assert lengths == {1: "too_few_tokens", 2: None, 3: None, 4: "too_many_tokens"}


def test_responses_at_the_length_cap_are_dropped_only_if_configured() -> None:
    cut = sample("a = 1\nb =", finish_reason="length")
    assert reason_for(cut) is None
    assert reason_for(cut, length_capped="drop") == "length_capped"
    assert reason_for(sample("a = 1\nb = 2"), length_capped="drop") is None


def test_only_responses_at_the_length_cap_are_checked_for_loops() -> None:
    loop = {"drop_loops": True, "loop": LoopConfig(min_repeats=2, min_tokens=4)}
    ids = (7, 8, 7, 8, 7)
    assert reason_for(sample("a\nb", finish_reason="length", token_ids=ids), **loop) == "looping"
    assert reason_for(sample("a\nb", finish_reason="length", token_ids=(*ids, 9)), **loop) is None
    assert reason_for(sample("a\nb", token_ids=ids), **loop) is None
    assert reason_for(sample("a\nb", finish_reason="length", token_ids=ids), **{**loop, "drop_loops": False}) is None


def test_a_response_without_a_trained_token_is_dropped() -> None:
    mask = {"length_capped": "mask_end", "loop": LoopConfig(min_repeats=2, min_tokens=4), "mask_end_tokens": 3}
    assert reason_for(sample("a\nb", finish_reason="length", token_ids=(7, 7, 7, 7)), **mask) == "all_masked"
    assert reason_for(sample("a\nb", finish_reason="length", token_ids=(1, 2, 3)), **mask) == "all_masked"
    assert reason_for(sample("a\nb", finish_reason="length", token_ids=(1, 2, 3, 4)), **mask) is None
    assert reason_for(sample("a\nb", token_ids=(1, 2, 3)), **mask) is None


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("Two\nlines.", "no_code"),
        ("```python\ncut", "no_code"),
        ("```cpp\nint x;\n```", "other_language"),
        ("```\nx = 1\n```", "other_language"),
        ("```py\nx = (\n```", "unparsable"),
        ("```PY\nx = 1\n```", None),
        ("```cpp\nint x;\n```\n```python\nx = 1\n```", None),
    ],
)
def test_filters_on_the_program(response: str, reason: str | None) -> None:
    filters = {"drop_no_code": True, "languages": ("python",), "drop_unparsable": True}
    assert reason_for(sample(response + "\nwords"), **filters) == reason


def test_filters_on_the_program_keep_responses_without_one() -> None:
    assert reason_for(sample("Two\nlines."), languages=("python",), drop_unparsable=True) is None
    assert reason_for(sample("```\nx = 1\n```\nwords"), languages=("", "python")) is None


def test_a_program_in_the_reasoning_does_not_count() -> None:
    config = FilterConfig(drop_no_code=True)
    assert FilteredSample(sample(PROGRAM), config, prompt_opens_thinking=True).reason == "no_code"
    assert FilteredSample(sample(f"so\n</think>\n{PROGRAM}"), config, prompt_opens_thinking=True).reason is None


def test_the_first_filter_that_applies_gives_the_reason() -> None:
    assert reason_for(sample("", finish_reason="length"), length_capped="drop", drop_no_code=True) == "empty"
    assert reason_for(sample("a\nb", finish_reason="length"), length_capped="drop", drop_no_code=True) == (
        "length_capped"
    )


@pytest.mark.parametrize(
    "program",
    [
        "x = \0",
        "x = '\ud800'",
        "(" * 1000,
        "x = " + "-" * 200_000 + "1",
        "x = " + "1 + " * 200_000 + "1",
        "x = " + "f(" * 50_000 + ")" * 50_000,
        "x = " + "[" * 150 + "]" * 150 + "." + "a." * 200_000 + "b",
        "if x:\n" + "\n".join(" " * depth + "if x:" for depth in range(1, 2000)),
        "1" * 100_000,
        "x = 1\n" * 200_000,
        "lambda: " * 100_000,
        "print 'two'",
        "return = 1",
    ],
    ids=lambda program: program[:12].strip(),
)
def test_programs_that_the_parser_refuses_do_not_parse(program: str) -> None:
    assert not parses(program)


def test_unusual_valid_programs_parse_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parses("import re\nre.match('\\d', x)\nassert (1, 'x')\nif x is 1: pass")
    assert parses("")
    assert parses("x = [\n" + "1,\n" * 20_000 + "]")


@given(st.text(max_size=200))
def test_parsing_gives_a_result_for_any_text(program: str) -> None:
    try:
        compile(program, "", "exec", flags=0x400, dont_inherit=True)  # ast.PyCF_ONLY_AST
    except (SyntaxError, ValueError):
        assert not parses(program)
    else:
        assert parses(program)
    assert sys.getrecursionlimit() >= 1000


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"drop_shortest_fraction": 1.0}, r"drop_shortest_fraction = 1\.0: must be in"),
        ({"min_response_tokens": -1}, "min_response_tokens = -1: must not be negative"),
        ({"min_response_tokens": 5, "max_response_tokens": 4}, r"max_response_tokens = 4: .*min_response_tokens \(5\)"),
        ({"proxy_band": (0.5, 0.5)}, r"proxy_band = \[0\.5, 0\.5\]: must be two quantiles"),
        ({"mask_end_tokens": -1}, "mask_end_tokens = -1"),
        ({"languages": ("Python3", "cpp")}, r"languages = \[Python3, cpp\].*write \['python', 'cpp'\]"),
    ],
)
def test_wrong_settings_are_one_line(filters: dict[str, object], message: str) -> None:
    with one_line_error(message, ConfigError):
        FilterConfig(**filters)  # type: ignore[arg-type]


def test_wrong_bounds_of_a_loop_are_named() -> None:
    with pytest.raises(ConfigError, match="min_repeats = 1: must be at least 2"):
        LoopConfig(min_repeats=1)
