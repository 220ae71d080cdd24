"""Tests how the program is extracted from a response."""

from __future__ import annotations

import pytest

from megatron_ssd.prompts.extract import CodeBlock, extract_block, extract_code

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
