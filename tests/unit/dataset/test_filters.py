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
from tests.helpers.samples_run import PROGRAM, sample

NOTHING = {"drop_empty": False, "drop_one_line_stubs": False}


def reason_for(row: Sample, **filters: object) -> str | None:
    return FilteredSample(row, FilterConfig(**filters)).reason  # type: ignore[arg-type]


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
def test_the_papers_minimal_filters(response: str, reason: str | None) -> None:
    assert reason_for(sample(response)) == reason


def test_filters_can_be_off_but_what_was_never_run_always_goes() -> None:
    assert reason_for(sample(""), **NOTHING) is None
    assert reason_for(sample("pass"), **NOTHING) is None
    assert reason_for(sample("", finish_reason="skipped"), **NOTHING) == "skipped"


def test_token_bounds_are_inclusive() -> None:
    lengths = {length: reason_for(sample(PROGRAM, token_ids=(2,) * length), min_response_tokens=2,
                                  max_response_tokens=3) for length in range(1, 5)}  # fmt: skip
    assert lengths == {1: "too_few_tokens", 2: None, 3: None, 4: "too_many_tokens"}


def test_responses_cut_at_the_length_cap_stay_unless_asked_for() -> None:
    cut = sample("a = 1\nb =", finish_reason="length")
    assert reason_for(cut) is None
    assert reason_for(cut, length_capped="drop") == "length_capped"
    assert reason_for(sample("a = 1\nb = 2"), length_capped="drop") is None


def test_only_what_was_cut_can_loop() -> None:
    loop = {"drop_loops": True, "loop": LoopConfig(min_repeats=2, min_tokens=4)}
    ids = (7, 8, 7, 8, 7)
    assert reason_for(sample("a\nb", finish_reason="length", token_ids=ids), **loop) == "looping"
    assert reason_for(sample("a\nb", finish_reason="length", token_ids=(*ids, 9)), **loop) is None
    assert reason_for(sample("a\nb", token_ids=ids), **loop) is None
    assert reason_for(sample("a\nb", finish_reason="length", token_ids=ids), **{**loop, "drop_loops": False}) is None


def test_a_response_of_which_nothing_carries_loss_goes() -> None:
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
    asked = {"drop_no_code": True, "languages": ("python",), "drop_unparsable": True}
    found = reason_for(sample(response + "\nwords"), **asked)
    assert found == reason


def test_filters_on_the_program_leave_alone_what_has_none() -> None:
    assert reason_for(sample("Two\nlines."), languages=("python",), drop_unparsable=True) is None
    assert reason_for(sample("```\nx = 1\n```\nwords"), languages=("", "python")) is None


def test_a_program_in_reasoning_that_the_prompt_opened_is_none() -> None:
    config = FilterConfig(drop_no_code=True)
    assert FilteredSample(sample(PROGRAM), config, prompt_opens_thinking=True).reason == "no_code"
    assert FilteredSample(sample(f"so\n</think>\n{PROGRAM}"), config, prompt_opens_thinking=True).reason is None


def test_the_first_that_holds_gives_the_reason() -> None:
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
def test_what_the_parser_gives_up_on_is_no_python(program: str) -> None:
    assert not parses(program)


def test_odd_but_valid_programs_are_python_and_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parses("import re\nre.match('\\d', x)\nassert (1, 'x')\nif x is 1: pass")
    assert parses("")
    assert parses("x = [\n" + "1,\n" * 20_000 + "]")


@given(st.text(max_size=200))
def test_parsing_any_text_ends_in_yes_or_no(program: str) -> None:
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
        ({"languages": ("Python3", "cpp")}, r"languages = \['Python3', 'cpp'\].*write \['python', 'cpp'\]"),
    ],
)
def test_wrong_settings_are_one_line(filters: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        FilterConfig(**filters)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_wrong_bounds_of_a_loop_are_named() -> None:
    with pytest.raises(ConfigError, match=r"filters\.loop\.min_repeats = 1: must be at least 2"):
        LoopConfig(min_repeats=1)
