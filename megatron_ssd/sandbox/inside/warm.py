"""What every program finds ready: names without import, filled caches, specialised byte code."""

from __future__ import annotations

import importlib
import json
from types import ModuleType
from typing import Any

from megatron_ssd.sandbox.inside.program import execute

# LiveCodeBench's checker (``import_string`` in its testing_util.py) puts ``from M import *`` of each of these before a
# program, in this order, then ``import M`` of all but typing. A builtin is never hidden.
STAR_IMPORTED = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "typing",
)  # fmt: skip

_WARM_UP_PROGRAMS = (
    "def f(xs):\n    return sum(x * 2 for x in xs if x > 1) + len([y for y in xs])\n",
    "class A:\n    def f(self):\n        return sorted({1: 'a'}, key=lambda x: f'{x}')\nA().f()\n",
    "1 / 0",
    "x = (",
)


def preimport() -> None:
    """Make the names of LiveCodeBench's prelude known to every program, beside the builtins.

    A copy for each program would cost it a millisecond.

    ``threading`` is not among them and not imported by this server: its work after a fork doubles a fork's cost.
    """
    modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in STAR_IMPORTED}
    builtin = vars(importlib.import_module("builtins"))
    names: dict[str, Any] = {}
    for name in STAR_IMPORTED:
        module = modules[name]
        public = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        names.update({n: getattr(module, n) for n in public if n not in builtin})
    del modules["typing"]
    builtin.update({**names, **modules})


def warm_up() -> None:
    """Do in the server what every program would otherwise do for the first time: fill caches, specialise byte code.

    Each page that a child writes to is copied, and such copies are most of a short program's cost; this saves a third.
    """
    request = {"form": "function", "function_name": "f", "class_name": None, "inputs": ["[1, 2]"] * 10}
    for source in (*_WARM_UP_PROGRAMS, *_WARM_UP_PROGRAMS) * 5:
        execute({**request, "source": source}, json.dumps)
        execute({**request, "source": source, "form": "stdin"}, json.dumps)
