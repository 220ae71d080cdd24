"""Problems and samples for the tests of grading."""

from __future__ import annotations

from megatron_ssd.schema import Problem, Sample, TestCase


def function_problem(identity: str = "double", *, tests: int = 3, difficulty: str = "easy") -> Problem:
    """A problem whose solution is a function ``f`` that returns twice its argument."""
    cases = tuple(TestCase(input=str(x), output=str(2 * x)) for x in range(1, tests + 1))
    return Problem(id=identity, source="test", statement="Double it.", form="function", function_name="f",
                   difficulty=difficulty, tests=cases)  # fmt: skip


def stdin_problem(identity: str = "sum", *, tests: int = 3) -> Problem:
    """A problem whose solution reads two integers and prints their sum."""
    cases = tuple(TestCase(input=f"{x} {x + 1}\n", output=f"{2 * x + 1}\n") for x in range(tests))
    return Problem(id=identity, source="test", statement="Add them.", form="stdin", tests=cases)


def sample(source: str, *, problem: str = "double", index: int = 0, fenced: bool = True) -> Sample:
    """A response with the program ``source``."""
    response = f"```python\n{source}\n```" if fenced else source
    return Sample(problem_id=problem, sample_index=index, messages=[], prompt_token_ids=[], response=response,
                  response_token_ids=[], finish_reason="stop", seed=0, sampling_hash="", model_revision="")  # fmt: skip
