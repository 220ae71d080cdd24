"""Tests seeds and skipped prompts of planned requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.generation.engine import Request
from megatron_ssd.generation.plan import plan_requests, request_seed, sampling_hash, skip_reason
from megatron_ssd.prompts.prompt import Prompt

HOT = SamplingParams(temperature=1.5)


def prompt(id_: str, length: int = 3) -> Prompt:
    return Prompt(problem_id=id_, messages=[{"role": "user", "content": id_}], token_ids=list(range(length)))


def plan(prompts: list[Prompt], *, num_samples: int, run_seed: int = 0, params: SamplingParams = HOT) -> list[Request]:
    return plan_requests(
        prompts, num_samples=num_samples, run_seed=run_seed, params=params, max_tokens=4, max_model_len=10
    )


def test_seeds_never_change() -> None:
    # If these values change, no published run can be repeated.
    assert request_seed(0, "seed_1", 0) == 5024064890622183469
    assert request_seed(1, "seed_1", 0) == 53464718932559889


@given(run=st.integers(), problem=st.text(), index=st.integers(min_value=0))
def test_seeds_fit_into_an_int64(run: int, problem: str, index: int) -> None:
    assert 0 <= request_seed(run, problem, index) < 2**63


def test_seeds_depend_on_every_argument_and_differ_in_their_low_bits() -> None:
    # A CPU generator uses only the low 32 bits of a seed.
    seeds = [request_seed(run, f"p{problem}", index) for run in (0, 1) for problem in range(100) for index in range(10)]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(seeds)
    assert request_seed(1, "2", 3) != request_seed(12, "", 3) != request_seed(1, "23", 0)


def test_seeds_do_not_depend_on_other_requests() -> None:
    prompts = [prompt(f"p{number}") for number in range(20)]
    plans = [
        plan(some, num_samples=count, run_seed=7)
        for some, count in ((prompts, 3), (prompts[::-1], 3), (prompts[5:8], 2))
    ]
    first = {request.key: request.seed for request in plans[0]}
    assert all(first[request.key] == request.seed for requests in plans for request in requests)


def test_the_plan_follows_the_order_of_the_prompts() -> None:
    requests = plan([prompt("b"), prompt("a")], num_samples=2)
    assert [request.key for request in requests] == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]


@pytest.mark.parametrize(("length", "word"), [(0, "empty"), (1, ""), (9, ""), (10, "10 tokens"), (11, "11 tokens")])
def test_prompts_without_room_for_a_response_are_skipped(length: int, word: str) -> None:
    reason = skip_reason(length, 10)
    assert bool(reason) == bool(word)
    assert word in reason


def test_requests_have_their_seed_and_parameters() -> None:
    (request,) = plan([prompt("p")], num_samples=1, run_seed=3)
    assert (request.key, request.seed, request.max_tokens) == (("p", 0), request_seed(3, "p", 0), 4)
    assert (request.prompt_token_ids, request.params, request.skip_reason) == ([0, 1, 2], HOT, "")


def test_every_setting_changes_the_sampling_hash() -> None:
    hashes = {
        sampling_hash(params, max_tokens, stops)
        for params in (
            SamplingParams(),
            SamplingParams(temperature=1.5),
            SamplingParams(top_k=20),
            SamplingParams(top_p=0.8),
            SamplingParams(min_p=0.1),
            SamplingParams(repetition_penalty=1.1),
        )
        for max_tokens in (8, 9)
        for stops in ((), (7,))
    }
    assert len(hashes) == 24
