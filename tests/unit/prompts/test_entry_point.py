"""Tests how the definition of a function is found in a response."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.prompts.extract import Extraction, extract_program

F = "def f(x):\n    return x + 1\n"
FENCED = f"```python\n{F}```\n"
PROMPT = 'from math import floor\n\ndef one():\n    return 1\n\n\ndef f(x):\n    """x plus 1"""\n'


def extract(response: str, prompt: str = "", **options: object) -> Extraction:
    return extract_program(response, rule="entry_point", entry_point="f", prompt=prompt, **options)  # type: ignore[arg-type]


def value_of(response: str, prompt: str = "", **options: object) -> object:
    """What the program in ``response`` returns for ``f(1)``."""
    program = extract(response, prompt, **options).program
    assert program is not None
    names: dict[str, object] = {"__name__": "solution"}
    exec(compile(program, "solution", "exec"), names)
    return names["f"](1)  # type: ignore[operator]


@pytest.mark.parametrize(
    "response",
    [
        FENCED,
        F,
        f"Here it is:\n\n{F}\nDoes that help? I don't know (maybe",
        FENCED.removesuffix("```\n"),
        f"{FENCED}Usage:\n```python\nprint(f(3))\n```",
        f"{FENCED}Tests:\n```python\nassert f(3) == 5\n```",
        f"```python\n{F}\nassert f(3) == 5\nn = int(input())\nprint(f(n))\n```",
        f"```python\n{F}\nif __name__ == '__main__':\n    raise SystemExit(f(2))\n```",
        "```python\ndef h(x):\n    return x\n```\nand\n```python\ndef f(x):\n    return h(x) + 1\n```",
        "```python\ndef f(x):\n    return h(x) + 1\n```\nwith\n```python\ndef h(x):\n    return x\n```",
        "```python\nimport math\nK = 1\n```\n```python\ndef f(x):\n    return math.floor(x) + K\n```",
        "```python\nfrom math import *\n```\n```python\ndef f(x):\n    return floor(x) + 1\n```",
        "```python\nK = 1; L = 2\nclass C:\n    one = K\n\ndef f(x):\n    return x + C.one\n```",
        "```python\nimport functools\n\n@functools.cache\ndef f(x):\n    return x + 1\n```",
        "```python\ntry:\n    import nothing as n\nexcept ImportError:\n    n = 1\ndef f(x):\n    return x + n\n```",
        "```python\nf = lambda x: x + 1\n```",
        'from __future__ import annotations\n\ndef f(x: "Unknown") -> Unknown:\n    return x + 1\n',
        f"```python\n{F}```<|im_end|>",
        f"```python\n{F}```</s>",
        f"```python\n{F}``` done",
        f"```python\r\n{F}```\r\n".replace("\n", "\r\n"),
        f"```python\n{F}    y = 1\n  z = (",
        "```python\ndef f(x):\n    t = '</think>'\n    return x + 1\n```",
        "```python\ndef f(x):\n    # strip <think> and </think>\n    return x + 1\n```",
        'def f(x):\n    """\n    ```python\n    f(1)\n    ```\n    """\n    return x + 1\n',
        '```python\ndef f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n```',
        f"```python\ndef f(x):\n    pass\n```\n{FENCED}",
        f"<think>\n```python\ndef f(x):\n    # a long\n    # draft\n    return x\n```\n</think>\n{FENCED}",
        f"<think>\n```python\ndef f(x)\n</think>\n{FENCED}",
        f"<think>\n{FENCED}",
        f"def f(x):\n    return x + 1\n\x00\ud800\n{'(' * 300}",
    ],
)
def test_a_right_answer_is_found(response: str):
    assert value_of(response) == 2
    assert value_of(response, PROMPT) == 2


def test_the_longest_definition_and_the_first_in_it_count_as_in_the_sanitizer():
    assert value_of(f"```python\ndef f(x): return 0\n```\n{FENCED}```python\ndef f(x): return 5\n```") == 2
    assert value_of(f"```python\n{F}def f(x):\n    return 7\n```") == 2


@pytest.mark.parametrize(
    "response",
    [
        "```python\ndef f(x):\n    return x + one()\n```",
        "def f(x):\n    return floor(x + 1.5)\n",
        "from __future__ import annotations\n\ndef f(x: int) -> int:\n    return x + one()\n",
        "```python\n    return x + one()\n```",
        "    return x + one()\n",
        "    return x + one()\n\n\ndef f(x):\n    return 0\n",
        "\n    return x + one()\n# Tests\nassert f(1) == 3\n",
    ],
)
def test_the_prompt_runs_in_front(response: str):
    assert value_of(response, PROMPT) == 2


def test_a_prompt_without_a_docstring():
    assert value_of(FENCED, "def f(x):\n") == 2
    assert value_of("```python\n    return x + 1\n```", "def f(x):\n") == 2


def test_names_that_the_tests_use_are_kept():
    response = f"```python\nclass Pair:\n    pass\n\nclass Other:\n    pass\n\n{F}```"
    program = extract(response, tested_names=frozenset({"Pair"})).program
    assert program is not None
    assert "class Pair" in program
    assert "class Other" not in program


@pytest.mark.parametrize(
    ("response", "cause"),
    [
        ("", "empty response"),
        (" \n\t", "empty response"),
        ("I cannot.", "no entry point"),
        ("```python\ndef g(x):\n    return x\n```", "no entry point"),
        ("```python\ndef f(x:\n    return x\n```", "no entry point"),
        ("```python\nclass A:\n    def f(self, x):\n        return x\n```", "no entry point"),
        ("<think>\nHow about", "reasoning not closed"),
        ("<think>\nHow about </think> nothing", "no entry point"),
    ],
)
def test_the_cause_if_there_is_no_program(response: str, cause: str):
    assert extract(response) == Extraction(cause=cause)  # type: ignore[arg-type]


def test_a_response_without_a_mark_in_reasoning_that_the_prompt_opened():
    assert extract("How about", prompt_opens_thinking=True).cause == "reasoning not closed"


PROSE = st.sampled_from(
    ["", "Here it is:", "It's (not) easy.", "# Title", "- item", "x = 3", "1. first", "Note: done", "```", "**Bold**"]
)
DEFINITIONS = st.sampled_from(
    [F, f'{F}\n# a comment\nK = """\n```\n"""\n', f"import os\n\n{F}", f"class A:\n    pass\n\n\n{F}"]
)


@given(st.lists(PROSE), DEFINITIONS, st.lists(PROSE), st.sampled_from(["```python\n", "```\n", "~~~py\n"]))
def test_a_program_in_any_markdown_is_found(before: list[str], program: str, after: list[str], fence: str):
    assert value_of("\n".join([*before, fence + program + fence[:3], *after])) == 2


PIECES = st.sampled_from([F, "```", '"""', "(", "if x:", "    ", "def f(x):", "\\", "'", "\x00", "\ud800", "f(" * 50])


@settings(deadline=None, max_examples=50)
@given(st.text(), st.lists(PIECES))
def test_no_text_raises(text: str, lines: list[str]):
    for response in ("\n".join([text, *lines]), "".join(lines)):
        found = extract(response, PROMPT)
        assert (found.program is None) != (found.cause is None)


@pytest.mark.parametrize("line", ["x = 1 + \\", '"""', "x = '''", "if x:", "[1,", "@f", "f(" * 50])
def test_the_parser_reads_at_most_a_multiple_of_a_text(line: str):
    """Without a limit, some of these texts would take hours."""
    assert extract(f"{line}\n" * 1000).program is None
