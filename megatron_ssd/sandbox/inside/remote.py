"""Lets checks use the functions of a program in another process.

Plain values are passed by value, in both directions: an argument that the program changes in place does not change for
the checks. Everything else stays in its process and is represented by a number and a ``Remote``. A ``Remote`` equals
only itself and supports no arithmetic, so nothing that a program defines (an ``__eq__`` that always agrees) affects a
comparison.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterator
from typing import Any

from megatron_ssd.sandbox.inside.frames import receive, send
from megatron_ssd.sandbox.inside.values import decode, encode

_MODULE = 0  # the number of the program's own namespace
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr, "setattr": setattr, "getitem": operator.getitem, "setitem": operator.setitem, "len": len,
    "bool": bool, "iter": iter, "next": next, "contains": operator.contains,
    "call": lambda function, arguments, keywords: function(*arguments, **keywords),
}  # fmt: skip


class ProgramEndedError(Exception):
    """The program's process has ended, or broke the protocol."""


class BrokenCheckError(Exception):
    """The checks ask for something impossible, which is an error of the benchmark."""


class Link:
    """The checks' end of the channel.

    Args:
        descriptor: the socket.
        limit: bytes of the longest answer that is accepted.
    """

    def __init__(self, descriptor: int, limit: int) -> None:
        self._descriptor, self._limit = descriptor, limit
        self.program = Remote(self, _MODULE)
        self.raised: Exception | None = None  # the last exception that the program raised
        self.raised_detail = ""
        self.ended = False

    def hello(self) -> dict[str, Any] | None:
        """Wait until the program is loaded. Returns None, or the error that prevented it."""
        answer = self._receive()
        return None if answer.get("ready") is True else answer

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Run an operation in the program's process. Raises the exception that it raised there."""
        message = {"do": operation, "with": [encode(value, _number_of) for value in arguments]}
        try:
            send(self._descriptor, message)
        except OSError:
            raise self._end("") from None
        answer = self._receive()
        if "raised" in answer:
            raise self._exception(str(answer["raised"]), str(answer.get("detail", "")))
        try:
            return decode(answer["value"], lambda number: Remote(self, int(number)))
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise self._end(f"an answer of the program cannot be read ({type(error).__name__})") from None

    def _receive(self) -> dict[str, Any]:
        try:
            answer = receive(self._descriptor, limit=self._limit)
        except (ValueError, OSError) as error:
            raise self._end(f"an answer of the program cannot be read ({error})") from None
        if not isinstance(answer, dict):
            raise self._end("")
        return answer

    def _end(self, detail: str) -> ProgramEndedError:
        """Mark the link as ended, even if a check catches every exception."""
        self.ended = True
        return ProgramEndedError(detail)

    def _exception(self, name: str, detail: str) -> Exception:
        """An exception of the built-in type of that name, so that checks can expect it."""
        kind = getattr(builtins, name, None)
        try:
            error = kind(detail) if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(detail)
        except TypeError:  # a type that wants more than a message
            error = RuntimeError(detail)
        self.raised, self.raised_detail = error, f"{name}: {detail}"
        return error


class Remote:
    """A reference to an object of the program. It compares by identity only."""

    __slots__ = ("_link", "_number")

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("setattr", self, name, value)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it in its process. A plain result is returned by value."""
        return self._link.ask("call", self, list(arguments), keywords)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._link.ask("setitem", self, key, value)

    def __contains__(self, item: Any) -> bool:
        return bool(self._link.ask("contains", self, item))

    def __len__(self) -> int:
        return int(self._link.ask("len", self))

    def __bool__(self) -> bool:
        return bool(self._link.ask("bool", self))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._link.ask("iter", self)
        while True:
            try:
                item = self._link.ask("next", iterator)
            except StopIteration:
                return
            yield item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._number == other._number

    def __hash__(self) -> int:
        return hash(self._number)


def _number_of(value: Any) -> int:
    if not isinstance(value, Remote):
        raise BrokenCheckError(f"a value of type {type(value).__name__} cannot be given to the program")
    number: int = value._number
    return number


def serve_calls(descriptor: int, module: object) -> None:
    """The program's side: run operations until the other side closes."""
    objects: list[Any] = [module]
    numbers = {id(module): _MODULE}

    def number_of(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(objects)
            objects.append(value)
        return numbers[id(value)]

    send(descriptor, {"ready": True})
    while (request := receive(descriptor)) is not None:
        try:
            arguments = [decode(value, objects.__getitem__) for value in request["with"]]
            answer = {"value": encode(_OPERATIONS[request["do"]](*arguments), number_of)}
        except BaseException as error:  # noqa: BLE001 - whatever a program raises is a finding about the program
            answer = {"raised": type(error).__name__, "detail": described(error)}
        send(descriptor, answer)


def described(error: BaseException) -> str:
    """The message of an exception in one line; empty if reading it raises an exception."""
    try:
        return " ".join(str(error).split())[:300]
    except BaseException:  # noqa: BLE001 - a program's own __str__
        return ""
