"""Runs one program inside its process, as ``__main__`` or through calls of its function.

The results of a function leave as JSON, from which ``grading.compare`` makes plain data again. Scalars and lists are
encoded as themselves, anything else as an object with one key, its type: ``{"tuple": [1, 2]}``. A subclass is encoded
as its base (a named tuple as a tuple, a Counter as a dictionary) and a NumPy scalar as a Python number, so the reading
side never calls a method that a program wrote. Pickle is not safe, because the objects that it can build are hard to
limit. A long integer is written in hexadecimal digits, since the time to write decimal digits is quadratic.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import sys
import traceback
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from types import CodeType, ModuleType
from typing import Any

from megatron_ssd.sandbox.inside.frames import write_all

STACK_BYTES = 100 << 20  # less than the 128 MiB that Linux keeps free below every stack
OPEN_FILES = 32
RESULTS_FD = 3
_FILE = "solution.py"
_DETAIL_CHARACTERS = 300
_LONG_BITS = 4096
# Type -> plain form, by the base type's own methods: a subclass may override its methods.
_SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, lambda value: int.__add__(value, 0)),
    (float, lambda value: float.__mul__(value, 1.0)),
    (str, lambda value: str.__getitem__(value, slice(None))),
)
_SEQUENCES: dict[str, type] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque, "bytes": bytes,
    "bytearray": bytearray,
}  # fmt: skip
_WRITTEN: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "complex": (complex, lambda v: [v.real, v.imag]),
    "Decimal": (Decimal, str),
    "Fraction": (Fraction, lambda v: [encode(v.numerator), encode(v.denominator)]),
    "range": (range, lambda v: [encode(v.start), encode(v.stop), encode(v.step)]),
}
_PLAIN = frozenset({type(None), bool, float, str})


def give_up_root(user: int) -> None:
    """Switch to ``user`` and the group of the same number, without other groups. Raises ``OSError``."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def limit_process(request: dict[str, Any], max_threads: int | None = None) -> None:
    """Set the limits of this process. They cannot be raised again.

    Args:
        request: the limits of this program.
        max_threads: for all processes of this user together; None if that would count processes outside the container.
    """
    total_cpu = int(sum(cpu for cpu, _ in request["intervals"])) + 2
    for what, limit in (
        (resource.RLIMIT_CPU, total_cpu),
        (resource.RLIMIT_AS, request["memory_bytes"]),
        (resource.RLIMIT_FSIZE, request["output_bytes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    if max_threads is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (max_threads, max_threads))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))


def execute(request: dict[str, Any], report: Callable[[dict[str, Any]], object] | None = None) -> int:
    """Compile and run the program. Returns the exit status.

    ``report`` gets its results and its error; None stands for ``report_result``.
    """
    report = report or report_result
    module = ModuleType("__main__" if request["form"] == "stdin" else "solution")
    sys.modules[module.__name__] = module
    stage = "syntax"
    try:
        code = _compile(request["source"], may_return=request["form"] == "stdin")
        stage = "runtime"
        return _run(request, code, module, report)
    except MemoryError as error:
        report({"error": "memory" if stage == "runtime" else stage, "detail": describe(error)})
    except BaseException as error:  # noqa: BLE001 - whatever a program raises is a finding about the program
        report({"error": stage, "detail": describe(error)})
    return 1


def _compile(source: str, *, may_return: bool) -> CodeType:
    """The code of a program.

    Args:
        source: its text.
        may_return: whether it may end with ``return`` outside of functions, as in LiveCodeBench's checker, which makes
            it the body of a function.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it is not Python.
    """
    try:
        return compile(source, _FILE, "exec", dont_inherit=True)
    except SyntaxError as error:
        if not may_return or error.msg != "'return' outside function":
            raise
    import ast  # few programs need it, and each module makes every fork of the server slower

    tree, main = ast.parse(source), ast.parse("def wrapped_function(): pass\nwrapped_function()")
    imports: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert isinstance(main.body[0], ast.FunctionDef)
    main.body[0].body = [node for node in tree.body if node not in imports]
    main.body[:0] = imports
    return compile(main, _FILE, "exec", dont_inherit=True)


def _run(
    request: dict[str, Any], code: CodeType, module: ModuleType, report: Callable[[dict[str, Any]], object]
) -> int:
    if request["form"] == "stdin":
        return _run_main(code, module)
    exec(code, module.__dict__)
    _call_function(module, request, report)
    return 0


def _run_main(code: CodeType, module: ModuleType) -> int:
    """Run as a script, then do what the interpreter does at exit: join threads, run exit handlers, flush.

    ``sys.exit`` is not an error with any status, as in LiveCodeBench's checker: the output decides.
    """
    with contextlib.suppress(SystemExit):
        exec(code, module.__dict__)
    threading: Any = sys.modules.get("threading")
    for thread in threading.enumerate() if threading else ():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
    return 0


def _call_function(module: ModuleType, request: dict[str, Any], report: Callable[[dict[str, Any]], object]) -> None:
    """Call the function, or the method of a new object, on every input. Results are reported one by one."""
    name, owner = request["function_name"], request["class_name"]
    for text in request["inputs"]:
        arguments = [json.loads(line) for line in text.split("\n") if line.strip()]
        holder = getattr(module, owner)() if owner else module
        report({"value": encode(getattr(holder, name)(*arguments))})


def report_result(message: dict[str, Any]) -> None:
    """Write a result or an error as a line for the server."""
    write_all(RESULTS_FD, json.dumps(message).encode() + b"\n")


def describe(error: BaseException) -> str:
    """One line: the exception's type and message."""
    return " ".join("".join(traceback.format_exception_only(error)).split())[:_DETAIL_CHARACTERS]


def encode(value: Any) -> Any:
    """Returns ``value`` in a form for ``json.dumps``.

    Raises:
        TypeError: it is not plain data.
        RecursionError: it contains itself, or is nested too deeply.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        return value if value.bit_length() <= _LONG_BITS else {"int": hex(value)}
    if kind is list:
        return [encode(item) for item in value]
    for base, plain in _SCALARS:
        if isinstance(value, base):
            return encode(plain(value))
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    for name, base in _SEQUENCES.items():
        if isinstance(value, base):
            items = [encode(item) for item in base.__iter__(value)]  # type: ignore[attr-defined]
            return items if base is list else {name: items}
    for name, (base, write) in _WRITTEN.items():
        if kind is base:
            return {name: write(value)}
    if _is_numpy_scalar(value) and type(plain_value := value.item()) in (_PLAIN | {int}):
        return encode(plain_value)
    raise TypeError(f"a result of type {kind.__name__} is not a plain value")


def _is_numpy_scalar(value: Any) -> bool:
    """Whether it is a NumPy scalar. NumPy is used only if the program has imported it."""
    return "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic)
