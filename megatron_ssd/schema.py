"""The records that stages exchange as JSON: problems, samples, scores, verdicts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import msgspec

from megatron_ssd.errors import UserError

ProblemForm = Literal["stdin", "function", "checks", "evalplus"]
CHECKED_FORMS: tuple[ProblemForm, ...] = ("checks", "evalplus")  # their tests have no expected output
FinishReason = Literal["stop", "length", "skipped"]
VerdictStatus = Literal[
    "passed", "wrong_answer", "runtime_error", "timeout", "memory", "syntax_error", "no_code", "infrastructure_error"
]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record of a JSON lines file."""

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists, ready for ``json.dumps``."""
        record: dict[str, Any] = msgspec.to_builtins(self)
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The record in ``record``. Raises ``UserError`` if a field is unknown, missing or of another type."""
        try:
            return msgspec.convert(record, cls)
        except msgspec.ValidationError as error:
            raise UserError(
                f"{cls.__name__} record with fields {sorted(record)}",
                rule=f"{str(error)[0].lower()}{str(error)[1:]}",
                fix="make the file again with this version of the stage that wrote it",
            ) from None


class TestCase(_Record, frozen=True, kw_only=True):
    """One hidden test.

    For ``stdin`` problems both are raw text. For ``function`` problems ``input`` is one JSON value per argument,
    joined by newlines, and ``output`` is one JSON value (LiveCodeBench's convention). For ``checks`` problems ``input``
    is a Python script of assertions that runs behind the program, in its names. For ``evalplus`` problems ``input`` is
    the Python literal of a list of lists of arguments, on which the program's function must agree with the canonical
    solution in the problem's ``metadata``. For both, ``output`` is empty.
    """

    __test__ = False  # not a pytest class

    input: str
    output: str


class Problem(_Record, frozen=True, kw_only=True):
    """A programming problem. ``id`` is unique within its source and stable across runs."""

    id: str
    source: str
    statement: str
    form: ProblemForm
    title: str = ""
    starter_code: str = ""
    function_name: str | None = None
    difficulty: str | None = None
    date: str | None = None  # ISO date of the contest, if known
    tests: tuple[TestCase, ...] = ()
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class _OfSample(_Record, frozen=True, kw_only=True):
    """A record of one sample."""

    problem_id: str
    sample_index: Annotated[int, msgspec.Meta(ge=0)]

    @property
    def key(self) -> tuple[str, int]:
        """(problem id, sample index), unique in a run."""
        return self.problem_id, self.sample_index


class Sample(_OfSample, frozen=True, kw_only=True):
    """One response of the frozen model, with everything needed to reproduce it.

    ``response_token_ids`` are the ids as sampled, never a retokenization of ``response``. They end with an
    end-of-sequence id only if the model stopped by itself (``finish_reason == "stop"``). A prompt that could not be run
    has ``finish_reason == "skipped"``, an empty response, and the reason in ``skip_reason``.
    """

    messages: list[dict[str, str]]
    prompt_token_ids: list[int]
    response: str
    response_token_ids: list[int]
    finish_reason: FinishReason
    seed: int
    sampling_hash: str
    model_revision: str
    skip_reason: str = ""


class ResponseScore(_OfSample, frozen=True, kw_only=True):
    """Mean natural log-probability of a response under a proxy model, over the proxy's ``num_tokens`` tokens.

    ``mean_logprob`` is None if there is no response to score.
    """

    mean_logprob: float | None
    num_tokens: int = 0


class Verdict(_OfSample, frozen=True, kw_only=True):
    """The outcome of running one program against the tests of its problem.

    ``infrastructure_error`` means that the checker failed; it never counts as wrong. ``by_test`` has one letter per
    executed test, in order: ``.`` passed, ``W`` wrong answer, ``R`` runtime error, ``T`` time-out, ``M`` memory,
    ``S`` syntax error, ``I`` infrastructure error.
    """

    status: VerdictStatus
    tests_passed: int = 0
    tests_total: int = 0
    failed_test: int | None = None  # index of the first failing test
    detail: str = ""  # one line: exception, difference, limit
    cpu_seconds: float = 0.0
    by_test: str = ""

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.status == "passed"
