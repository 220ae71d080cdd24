"""Tests how the program is extracted from a response under ``last_block`` or ``lcb``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.prompts.extract import (
    CodeBlock,
    Extraction,
    ExtractionRule,
    extract_block,
    extract_program,
)


def extract_code(response: str, *, prompt_opens_thinking: bool = False) -> str | None:
    """The program under the general rule."""
    return extract_program(response, rule="last_block", prompt_opens_thinking=prompt_opens_thinking).program


FENCED = "Here:\n```python\nprint(1)\n```\nDone."


def test_takes_the_fenced_block():
    assert extract_code(FENCED) == "print(1)\n"


def test_takes_the_last_of_several_blocks():
    assert extract_code("```python\nfirst\n```\ntext\n```python\nsecond\n```") == "second\n"


@pytest.mark.parametrize("tag", ["python", "Python", "py", "python3", "PY3"])
def test_prefers_a_python_block_to_a_later_block_of_output(tag: str):
    assert extract_code(f"```{tag}\nprint(1)\n```\nIt prints\n```\n1\n```\n") == "print(1)\n"


def test_takes_an_untagged_block_if_none_is_tagged():
    assert extract_code("```\nprint(2)\n```") == "print(2)\n"


def test_ignores_a_fence_that_is_never_closed():
    assert extract_code("```python\ncomplete\n```\nBetter:\n```python\ncut o") == "complete\n"
    assert extract_code("```python\ncut o") is None


def test_cuts_off_reasoning():
    assert extract_code("<think>\n```python\ndraft\n```\n</think>\n```python\nfinal\n```") == "final\n"
    assert extract_code("```python\ndraft\n```\n</think>\nNo code here.") is None


def test_unfinished_reasoning_has_no_program():
    assert extract_code("<think>\n```python\ndraft\n```") is None
    assert extract_code("```python\ndraft\n```", prompt_opens_thinking=True) is None


def test_code_without_a_fence_is_not_a_program():
    assert extract_code("print(1)") is None


@pytest.mark.parametrize("response", ["", "  \n", "```python\n\n```", "```python\n \n```\n"])
def test_an_empty_response_has_no_program(response: str):
    assert extract_code(response) is None


def test_backticks_within_a_longer_fence_are_content():
    assert extract_code("````python\ns = '''\n```\n'''\n````") == "s = '''\n```\n'''\n"


def test_windows_line_ends_do_not_hide_a_fence():
    assert extract_code("```python\r\nprint(1)\r\n```\r\n") == "print(1)\r\n"


def test_an_indented_fence_is_recognised():
    assert extract_code("1. Do\n   ```python\nx = 1\n   ```") == "x = 1\n"


@pytest.mark.parametrize(
    ("response", "language"),
    [
        ("```Py3 title=a\nx\n```", "python"),
        ("```C++\nx\n```", "c++"),
        ("```\nx\n```", ""),
        ("~~~ python\nx\n~~~", "python"),
    ],
)
def test_the_block_names_its_language(response: str, language: str):
    assert extract_block(response) == CodeBlock(language, "x\n")


def test_the_block_has_the_extracted_code():
    assert extract_block("```python\ncut o") is None
    assert extract_block("```python\n \n```") is None


@pytest.mark.parametrize(
    "line", ["```" + " " * 200_000 + "`", "~" * 200_000 + "`", "`" * 200_000 + "x`", " " * 200_000 + "x```"]
)
def test_lines_that_are_almost_fences_take_linear_time(line: str):
    """With backtracking, one of these lines would take minutes."""
    assert extract_code(f"{line}\n```python\nx\n```\n") == "x\n"


AB = "a, b = map(int, input().split())\nprint(a + b)"
BEHIND = ["", " done", ".", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>", " ```"]


def program(response: str, rule: ExtractionRule = "lcb", **options: bool) -> str | None:
    return extract_program(response, rule=rule, **options).program


@pytest.mark.parametrize("behind", BEHIND)
def test_anything_may_stand_behind_a_closing_fence(behind: str):
    for rest in ("", "\nThat is all.", "\n```python\ncut"):
        response = f"```python\n{AB}\n```{behind}{rest}"
        assert "```python" in rest or program(response) == AB
        if "`" not in behind:
            assert extract_code(response) == f"{AB}\n"


def test_a_tag_behind_a_fence_does_not_close_a_block():
    text = '"""\n```python\nf(1)\n"""\n'
    assert extract_code(f"```python\n{text}```") == text
    assert extract_code("```\na\n``` python\nb\n```") == "a\n``` python\nb\n"


@pytest.mark.parametrize(
    "line", ["x = '</think>'", "# strip </think>", "t = '<think>'", '"""\n</think>\n"""', "<think>"]
)
@pytest.mark.parametrize(
    "before", ["", "So.\n</think>\n", "<think>\nSo.</think>\n", "<think>\n```\ndraft\n```\n</think>\n"]
)
def test_marks_of_reasoning_in_a_program_belong_to_it(line: str, before: str):
    response = f"{before}```python\n{AB}\n{line}\n```\nIt removes all before </think> and <think>."
    assert program(response) == f"{AB}\n{line}"
    assert extract_code(response) == f"{AB}\n{line}\n"


def test_livecodebench_looks_at_fences_alone():
    assert program("```python\nfirst\n```\nso\n```\n8\n```") == "8"
    assert program("```a\nx\n```b\nprose\n```python") == "prose"
    assert program("<think>\n```python\ndraft\n```\nhm") == "draft"
    assert program("```\ndraft\n```\nhm", prompt_opens_thinking=True) == "draft"
    assert program("  Use ```x``` or ```y\nz\nend```.") == "z"
    assert program("~~~python\nx\n~~~") is None


@pytest.mark.parametrize(
    ("response", "cause"),
    [
        ("", "empty response"),
        (" \n", "empty response"),
        ("print(1)", "no fence"),
        ("```python\ncut", "fence not closed"),
        ("```python\n \n```", "empty block"),
        ("<think>\nLet me", "reasoning not closed"),
        ("<think>\n```python\ncut", "reasoning not closed"),
    ],
)
@pytest.mark.parametrize("rule", ["lcb", "last_block"])
def test_the_cause_if_there_is_no_program(response: str, cause: str, rule: ExtractionRule):
    assert extract_program(response, rule=rule) == Extraction(cause=cause)  # type: ignore[arg-type]


LINES = st.lists(
    st.sampled_from(["x = 1", "", "```", "```python", "~~~", "``` done", "<think>", "</think>", "\x00\ud800"])
)


@given(LINES, st.sampled_from(["lcb", "last_block"]), st.booleans())
def test_a_program_is_lines_of_the_response_or_there_is_a_cause(lines: list[str], rule: ExtractionRule, opens: bool):
    response = "\n".join(lines)
    found = extract_program(response, rule=rule, prompt_opens_thinking=opens)
    assert (found.program is None) != (found.cause is None)
    assert found.program is None or (found.program in response and found.program.strip())


@given(LINES, st.lists(st.sampled_from(["x = 1", "", "# ~~~", "t = '<think></think>'"])), st.booleans())
def test_a_program_behind_any_text_is_found(before: list[str], lines: list[str], closes: bool):
    text = "\n".join([*before, "```python", *lines, "y = 2", "``` done", *(["So be it."] if closes else [])])
    assert program(text) == "\n".join([*lines, "y = 2"])
