"""Tests how programs are read from a file of samples, from its bytes to their verdicts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.grading.grade_file import count_samples, program_of, read_submissions
from megatron_ssd.grading.metrics import no_code_causes
from megatron_ssd.grading.pool import Grader
from megatron_ssd.problems.assert_scripts import read_assert_scripts
from megatron_ssd.schema import Problem, TestCase
from tests.helpers.jsonl import write_jsonl

HUMANEVAL = {"task_id": "H/0", "prompt": 'def f(x):\n    """x plus 1"""\n', "entry_point": "f",
             "test": "def check(candidate):\n    assert candidate(1) == 2\n"}  # fmt: skip
HELPED = {**HUMANEVAL, "task_id": "H/1", "prompt": "from math import floor\n\ndef one():\n    return 1\n\n\n"
          + HUMANEVAL["prompt"]}  # fmt: skip
MBPP = {"task_id": 1, "text": "t", "code": "def f(x):\n    return [1.0] * x\n", "test_setup_code": "",
        "test_list": ["assert f(3) == [1, 1, 1]"]}  # fmt: skip
PAIRS = {**MBPP, "task_id": 2, "code": "class Pair:\n    def __init__(self, a):\n        self.a = a\n\n"
         "def f(pair):\n    return pair.a\n", "test_list": ["assert f(Pair(3)) == 3"]}  # fmt: skip
LCB = Problem(
    id="L", source="livecodebench", statement="", form="stdin", tests=(TestCase(input="3 4\n", output="7\n"),)
)
AB = "a, b = map(int, input().split())\nprint(a + b)\n"
FUNCTION = "def f(x):\n    return x + 1\n"
ONES = "def f(x):\n    return [1] * x\n"
QUOTED = '    """\n    ```python\n    f(1)\n    ```\n    """\n    return x + 1\n'

RIGHT = [
    ("H/0", "completion", "    return x + 1\n"),
    ("H/0", "completion", FUNCTION),
    ("H/0", "completion", QUOTED),
    ("H/0", "completion", f"def f(x):\n{QUOTED}"),
    ("H/0", "completion", "    fence = '''\n```\nNone\n```\n'''\n    return x + 1\n"),
    ("H/0", "completion", f"It adds one:\n```python\n{FUNCTION}```\n"),
    ("H/0", "response", f"```python\n{FUNCTION}```\nUsage:\n```python\nprint(f(3))\n```\n"),
    ("H/0", "response", f"```python\n{FUNCTION}```\n```python\nassert f(3) == 5\n```\n"),
    ("H/0", "response", "```python\ndef h(x):\n    return x\n```\n```python\ndef f(x):\n    return h(x) + 1\n```"),
    ("H/0", "response", f"```python\n{FUNCTION}```<|im_end|>"),
    ("H/0", "solution", FUNCTION),
    ("H/1", "completion", "def f(x):\n    return x + one()\n"),
    ("H/1", "completion", "def f(x):\n    return floor(x + 1.5)\n"),
    ("H/1", "response", "```python\ndef f(x):\n    return x + one()\n```"),
    ("H/1", "response", "```python\ndef f(x):\n    return floor(x + 1.5)\n```"),
    ("1", "response", f"```python\n{ONES}```\nUsage:\n```python\nprint(f(3))\n```\n"),
    ("1", "response", f"```python\n{ONES}```\n```python\nassert f(1) == 2\n```\n"),
    ("1", "response", f"```python\none = 1\n```\n```python\n{ONES.replace('1', 'one')}```\n"),
    ("Mbpp/1", "solution", ONES),
    ("Mbpp/2", "response", f"```python\n{PAIRS['code']}```"),
    ("L", "response", f"```python\n{AB}``` done"),
    ("L", "response", f"```python\n{AB}```<|endoftext|>"),
    ("L", "response", f"```python\n{AB}x = '</think>'\n```"),
    ("L", "response", f"<think>\nSo.\n</think>\n```python\n{AB}# strip </think>\n```"),
    ("L", "response", f"```python\n{AB}t = '<think>'\n```"),
    ("L", "completion", f'"""\n```python\nf(1)\n```\n"""\n{AB}'),
    ("L", "completion", f"```python\n{AB}```"),
    ("L", "code_list", [AB, f"{AB}\n"]),
]
WITHOUT_PROGRAM = [
    ("H/0", "response", "I cannot.", "no entry point"),
    ("L", "response", AB, "no fence"),
    ("L", "response", f"```python\n{AB}", "fence not closed"),
    ("L", "response", "<think>\nHow", "reasoning not closed"),
    ("1", "completion", " ", "empty response"),
    ("L", "code", "", "empty response"),
]


@pytest.mark.parametrize(
    ("key", "text", "program"),
    [
        ("code", "x = 1", "x = 1"),
        ("code", "```python\nx\n```", "```python\nx\n```"),
        ("code", " \n", None),
        ("response", "no fence", None),
        ("response", "<think>a</think>```python\ny = 2\n```", "y = 2\n"),
        ("completion", "y = 2", "y = 2"),
        ("completion", "Here:\n```\ny = 2\n```", "y = 2\n"),
        ("completion", "", None),
    ],
)
def test_the_program_of_a_record(key: str, text: str, program: str | None):
    assert program_of(key, text, Problem(id="1", source="mbpp", statement="", form="checks")).program == program


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Problem]:
    folder = tmp_path_factory.mktemp("problems")
    found = [
        *read_assert_scripts("humaneval", write_jsonl(folder / "humaneval.jsonl", [HUMANEVAL, HELPED])),
        *read_assert_scripts("mbpp", write_jsonl(folder / "mbpp.jsonl", [MBPP, PAIRS])),
        LCB,
    ]
    return {problem.id: problem for problem in found}


def test_verdicts_on_samples_of_each_kind(tmp_path: Path, problems: dict[str, Problem]):
    records = [{"task_id": problem, key: text} for problem, key, text, *_ in [*RIGHT, *WITHOUT_PROGRAM]]
    path = write_jsonl(tmp_path / "samples.jsonl", records)
    assert count_samples(path, problems).total() == len(records) + 1, "a list has a sample for each item"
    with Grader(problems.values(), SandboxConfig()) as grader:
        verdicts = grader.grade_programs(read_submissions(path, problems), tmp_path / "verdicts.jsonl")
    failed = [verdict for verdict in verdicts[: len(RIGHT) + 1] if not verdict.passed]
    assert not failed
    without = verdicts[len(RIGHT) + 1 :]
    assert [(verdict.status, verdict.detail) for verdict in without] == [("no_code", row[3]) for row in WITHOUT_PROGRAM]
    assert no_code_causes(verdicts) == {
        "empty response": 2, "fence not closed": 1, "no entry point": 1, "no fence": 1, "reasoning not closed": 1,
    }  # fmt: skip


@pytest.mark.parametrize("blank", ["{}\n\n", "\n{}\n", "{}\n \t\r\n{}\n", "{}\r\n{}"])
@pytest.mark.parametrize("name", ["samples.jsonl", "samples.jsonl.gz"])
def test_gzip_and_blank_lines(tmp_path: Path, problems: dict[str, Problem], blank: str, name: str):
    text = blank.replace("{}", json.dumps({"task_id": "H/0", "completion": "    return x"}))
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert [one.source for one in read_submissions(path, problems)] == [
        HUMANEVAL["prompt"] + "    return x"
    ] * blank.count("{}")


def test_a_gzip_file_of_several_members(tmp_path: Path, problems: dict[str, Problem]):
    line = gzip.compress(json.dumps({"task_id": "H/0", "code": "x"}).encode() + b"\n")
    (tmp_path / "samples.jsonl.gz").write_bytes(line + line)
    assert count_samples(tmp_path / "samples.jsonl.gz", problems) == {"H/0": 2}


LINE = json.dumps({"task_id": "H/0", "code": "x"}).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.jsonl", LINE + b"\n{broken\n", r"s\.jsonl:3: is not JSON"),
        ("s.jsonl", LINE + b'\n"text"\n', r"s\.jsonl:3: is a str, and every row must be an object"),
        ("s.jsonl.gz", gzip.compress(LINE * 2000)[:-20], r"s\.jsonl\.gz:\d+: is not a complete gzip file"),
        ("s.jsonl.gz", gzip.compress(LINE + b"{"), r"s\.jsonl\.gz:2: is not JSON"),
        ("s.jsonl", gzip.compress(LINE), r"s\.jsonl: is a gzip file by its first bytes"),
        ("s.jsonl", b"", "is empty"),
        ("s.jsonl", b"\n \n", "contains no record"),
        ("s.txt", LINE, r"its name must end with .*\.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, problems: dict[str, Problem], name: str, content: bytes, message: str
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        count_samples(tmp_path / name, problems)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"code_list": ["x", 1]}, "code_list = '1': must be text"),
        ({"code_list": "x", "code": "x"}, "has a text under code and code_list, and only one can count"),
        ({"response": None}, "response = 'None': must be text"),
        ({"solution": "x", "task_id": "Mbpp/9"}, "Mbpp/9: is not a problem of the benchmark's file"),
    ],
)
def test_a_wrong_record_is_one_line(tmp_path: Path, problems: dict[str, Problem], record: dict[str, Any], message: str):
    path = write_jsonl(tmp_path / "samples.jsonl", [{"task_id": "H/0", **record}])
    with pytest.raises(UserError, match=message):
        count_samples(path, problems)


@pytest.mark.parametrize(("known", "named"), [("2", "Mbpp/2"), ("Mbpp/2", 2), ("Mbpp/2", "Mbpp/2"), ("2", 2)])
def test_ids_with_and_without_the_prefix_of_evalplus(tmp_path: Path, known: str, named: object):
    problem = Problem(id=known, source="mbpp_plus", statement="", form="checks", function_name="f")
    path = write_jsonl(tmp_path / "samples.jsonl", [{"task_id": named, "response": FUNCTION}])
    (program,) = read_submissions(path, {known: problem})
    assert (program.problem_id, program.source) == (known, FUNCTION.strip())
