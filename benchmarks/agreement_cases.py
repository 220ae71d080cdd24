"""Makes programs for comparing two checkers on real problems.

Programs are solutions, mutants of solutions, and programs that look up the answer. The kind of the latter says what
they do with the answer. ``WHY`` explains the kinds on which this checker and LiveCodeBench's are known to differ.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.mutants import mutants
from megatron_ssd.schema import Problem, TestCase

_READ = "import sys, json\nanswers = json.loads({answers!r})\n"
_FIND = "answer = answers[sys.stdin.read().strip()]\n"
STDIN_KINDS = {
    "right": _FIND + "print(answer)",
    "input() to the end": """
lines = []
try:
    while True:
        lines.append(input())
except EOFError:
    pass
print(answers['\\n'.join(lines).strip()])""",
    "sys.stdin lines": "print(answers['\\n'.join(l.rstrip('\\n') for l in sys.stdin.readlines()).strip()])",
    "open(0)": "print(answers[open(0).read().strip()])",
    "buffer": "sys.stdout.write(answers[sys.stdin.buffer.read().decode().strip()])",
    "main guard": "def main():\n    print(answers[sys.stdin.read().strip()])\n\nif __name__ == '__main__':\n    main()",
    "exit(0) at the end": _FIND + "print(answer)\nsys.exit(0)",
    "trailing space": _FIND + "print(''.join(line + '  \\n' for line in answer.split('\\n')) + '\\n')",
    "numbers as 1.0": _FIND
    + "for line in answer.split('\\n'):\n"
    + "    print(*(word + '.0' if word.lstrip('-').isdigit() else word for word in line.split()))",
    "two spaces": _FIND + "print('\\n'.join('  '.join(line.split()) for line in answer.split('\\n')))",
    "last character": _FIND + "answer = answer.strip()\nprint(answer[:-1] + ('1' if answer[-1:] != '1' else '2'))",
    "one line more": _FIND + "print(answer)\nprint(0)",
    "one line": _FIND + "print(' '.join(answer.split()))",
    "upper case": _FIND + "print(answer.swapcase())",
    "nothing": "sys.stdin.read()",
    "raises at the end": _FIND + "print(answer)\nraise ValueError",
    "name without import": _FIND + "print(answer + os.sep[:0])",
    "exit(1) at the end": _FIND + "print(answer)\nsys.exit(1)",
    "return at the end": _FIND + "print(answer)\nreturn",
    "lines of sys.stdin": "print(answers['\\n'.join(line.rstrip('\\n') for line in sys.stdin).strip()])",
    "stdout.buffer": _FIND + "sys.stdout.buffer.write(answer.encode())",
    "global": "answer = ''\ndef read():\n    global answer\n    answer += answers[sys.stdin.read().strip()]\n\n"
    "read()\nprint(answer)",
    "class Solution": "class Solution:\n    def run(self):\n        print(answers[sys.stdin.read().strip()])\n\n"
    "Solution().run()",
    "buffer.readline": """
lines = [sys.stdin.buffer.readline()]
while lines[-1] and len(lines) < 100000:
    lines.append(sys.stdin.buffer.readline())
print(answers[b''.join(lines).decode().strip()])""",
}
_TABLE = "import json\nanswers = json.loads({answers!r})\n"
_METHOD = "class Solution:\n    def {name}(self, *a):\n        value = answers[json.dumps(a)]\n        "
FUNCTION_KINDS = {
    "right": _METHOD + "return value",
    "no class": "def {name}(*a):\n    return answers[json.dumps(a)]",
    "prints": _METHOD + "print(value)\n        return value",
    "tuple": _METHOD + "return tuple(value) if isinstance(value, list) else value",
    "inner tuples": _METHOD
    + "return [tuple(v) if isinstance(v, list) else v for v in value] if isinstance(value, list) else value",
    "floats": _METHOD + "return float(value) if type(value) is int else value",
    "almost": _METHOD + "return value + 1e-9 if type(value) in (int, float) else value",
    "text": _METHOD + "return str(value)",
    "None": _METHOD + "return None",
    "NumPy scalars": """import numpy as np
def scalar(value):
    if isinstance(value, list):
        return [scalar(v) for v in value]
    return np.int64(value) if type(value) is int and abs(value) < 2**63 else value
"""
    + _METHOD
    + "return scalar(value)",
    "NumPy array": "import numpy as np\n" + _METHOD + "return np.array(value) if isinstance(value, list) else value",
    "equals everything": "class A:\n    __eq__ = lambda self, other: True\n    __hash__ = None\n"
    + _METHOD
    + "return A()",
    "state in self": _METHOD + "self.n = getattr(self, 'n', 0) + 1\n        return value if self.n == 1 else None",
    "exits": _METHOD + "import sys\n        sys.exit(0)",
}
WHY = {
    "open(0)": "LiveCodeBench does not patch this open, which reads the checker's own standard input",
    "buffer.readline": "LiveCodeBench's sys.stdin.buffer.readline always returns the first line",
    "lines of sys.stdin": "LiveCodeBench's sys.stdin has no iterator",
    "stdout.buffer": "LiveCodeBench's sys.stdout is a text without a buffer",
    "global": "LiveCodeBench makes the program the body of a function, so its names are not global",
    "class Solution": "LiveCodeBench makes the program the body of a function, and looks for the class outside of it",
    "state in self": "LiveCodeBench calls the method of one object on all tests, this checker on a new one each time",
    "NumPy array": "LiveCodeBench takes an array of one number for true or false; here it is not a plain value",
    "equals everything": "LiveCodeBench calls the object's own __eq__",
}


def stdin_programs(problem: Problem) -> Iterator[tuple[str, str]]:
    """(kind, program) for a problem whose programs read standard input and print."""
    answers = json.dumps({test.input.strip(): test.output for test in problem.tests})
    for kind, body in STDIN_KINDS.items():
        yield kind, _READ.format(answers=answers) + body


def function_programs(problem: Problem, solution: str | None = None) -> Iterator[tuple[str, str]]:
    """(kind, program) for a problem whose programs are methods, with mutants of ``solution`` if there is one."""
    calls = [[json.loads(line) for line in test.input.split("\n")] for test in problem.tests]
    answers = json.dumps({json.dumps(a): json.loads(t.output) for a, t in zip(calls, problem.tests, strict=True)})
    for kind, body in FUNCTION_KINDS.items():
        yield kind, _TABLE.format(answers=answers) + body.replace("{name}", str(problem.function_name))
    if solution is not None:
        yield "solution", solution
        yield from ((f"mutant: {kind}", program) for kind, program in mutants(solution))


def leetcode_functions(path: Path) -> Iterator[tuple[Problem, str]]:
    """(problem, solution) of each of rllm's LeetCode rows whose assertions call the method with literals only."""
    for number, row in enumerate(json.loads(path.read_text()), start=1):
        problem = _function_problem(str(number), row)
        if problem is not None:
            yield problem, row["solutions"]


def _function_problem(identity: str, row: dict[str, Any]) -> Problem | None:
    texts = row["tests"] if isinstance(row["tests"], dict) else ast.literal_eval(row["tests"])
    check = ast.parse(texts["functional"])
    tests = []
    for node in ast.walk(check):
        if not isinstance(node, ast.Assert):
            continue
        match node.test:
            case ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[expected]):
                values = [*call.args, *(keyword.value for keyword in call.keywords)]
            case _:
                return None
        try:
            lines = [json.dumps(ast.literal_eval(value)) for value in values]
            tests.append(TestCase(input="\n".join(lines), output=json.dumps(ast.literal_eval(expected))))
        except (ValueError, TypeError):
            return None
    match check.body[-1]:
        case ast.Expr(value=ast.Call(args=[ast.Attribute(attr=name)])):
            return Problem(id=f"leetcode-{identity}", source="leetcode", statement=row["problem"], form="function",
                           function_name=name, starter_code="class Solution:", tests=tuple(tests))  # fmt: skip
    return None


def code_contests(path: Path, *, most_tests: int = 20) -> Iterator[Problem]:
    """SandboxFusion's CodeContests rows, the first tests of each."""
    for row in map(json.loads, path.read_text().splitlines()):
        pairs = [(test["input"]["stdin"], test["output"]["stdout"]) for test in json.loads(row["test"])[:most_tests]]
        yield Problem(id=f"codecontests-{row['id']}", source="codecontests", statement=row["content"], form="stdin",
                      tests=tuple(TestCase(input=given, output=wanted) for given, wanted in pairs))  # fmt: skip
