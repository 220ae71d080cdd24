"""Tests reasons, counts and trained token ids of single samples, also in the first pass."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from megatron_ssd.config.dataset import FilterConfig, LoopConfig
from megatron_ssd.dataset.filters import COUNTED, DROPPED, FilteredSample
from megatron_ssd.dataset.set_filters import REASONS, FirstPass, Scores, drop_reasons, read_scores
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Sample
from tests.helpers.samples_run import PROGRAM, publish_scores, sample

LOOP = LoopConfig(min_repeats=2, min_tokens=4)
LOOPING = sample("a\nb", finish_reason="length", token_ids=(1, 2, 3, 7, 8, 7, 8, 7))
CUT = sample("a\nb", finish_reason="length", token_ids=(1, 2, 3, 4, 5, 6))


def filtered(one: Sample, **filters: object) -> FilteredSample:
    return FilteredSample(one, FilterConfig(loop=LOOP, **filters))  # type: ignore[arg-type]


def trained(one: FilteredSample) -> list[int]:
    return one.sample.response_token_ids[: one.num_trained]


def first_pass(folder: Path, scores: Scores | None = None, **filters: object) -> FirstPass:
    config = FilterConfig(loop=LOOP, **filters)  # type: ignore[arg-type]
    return FirstPass(filters=config, parts=folder, vocab_size=64, scores=scores)


def test_a_kept_sample_has_the_sampled_ids_and_its_counts() -> None:
    one = filtered(sample(PROGRAM, token_ids=(5, 6)))
    assert (one.reason, trained(one)) == (None, [5, 6])
    assert one.counts(None) == {"responses": 1, "no_code": 0, "length_capped": 0, "looping": 0}


def test_dropped_samples_count_as_responses() -> None:
    one = filtered(LOOPING, length_capped="drop")
    assert one.reason == "length_capped"
    assert one.counts(one.reason) == {
        "responses": 1, "no_code": 1, "length_capped": 1, "looping": 1, DROPPED + "length_capped": 1,
    }  # fmt: skip


def test_a_skipped_prompt_has_no_response() -> None:
    assert filtered(sample(finish_reason="skipped")).counts("skipped") == {DROPPED + "skipped": 1}


def test_by_default_the_loop_is_kept() -> None:
    assert trained(filtered(LOOPING)) == LOOPING.response_token_ids


def test_mask_end_leaves_out_the_loop_or_the_last_tokens() -> None:
    one = filtered(LOOPING, length_capped="mask_end", mask_end_tokens=1)
    assert trained(one) == [1, 2, 3]
    assert (one.counts(None)["end_masked"], one.counts(None)["end_masked_tokens"]) == (1, 5)
    one = filtered(CUT, length_capped="mask_end", mask_end_tokens=2)
    assert trained(one) == [1, 2, 3, 4]
    assert (one.counts(None)["end_masked"], one.counts(None)["end_masked_tokens"]) == (1, 2)
    assert filtered(CUT, length_capped="mask_end", mask_end_tokens=6).reason == "all_masked"


def test_mask_end_changes_nothing_else() -> None:
    assert trained(filtered(CUT, length_capped="mask_end", mask_end_tokens=0)) == CUT.response_token_ids
    complete = sample(PROGRAM, token_ids=(7,) * 50)
    one = filtered(complete, length_capped="mask_end")
    assert trained(one) == complete.response_token_ids
    assert "end_masked" not in one.counts(None)


def test_the_reason_of_the_first_pass_counts_instead_of_the_samples_own() -> None:
    assert filtered(sample("pass")).reason == "one_line_stub"
    assert DROPPED + "one_line_stub" not in filtered(sample("pass")).counts(None)
    assert filtered(sample(PROGRAM)).counts("shortest")[DROPPED + "shortest"] == 1


@pytest.mark.parametrize("filters", [{}, {"drop_no_code": True, "drop_unparsable": True, "length_capped": "mask_end"}])
def test_a_first_pass_finds_the_same_reasons(tmp_path: Path, filters: dict[str, object]) -> None:
    samples = [sample(), sample("pass"), sample(PROGRAM), sample("a\nb"), sample("```\n1 +\n```\nx"), LOOPING, CUT,
               sample(finish_reason="skipped")]  # fmt: skip
    measuring = first_pass(tmp_path, **filters)
    reasons = drop_reasons(measuring.measure(samples), measuring.filters)
    assert [REASONS[index] for index in reasons] == [filtered(one, **filters).reason for one in samples]


def test_every_count_is_in_the_list_of_counts() -> None:
    for one in (LOOPING, CUT, sample(PROGRAM)):
        assert set(filtered(one, length_capped="mask_end", mask_end_tokens=1).counts(None)) <= set(COUNTED)


def test_a_first_pass_can_be_pickled(tmp_path: Path) -> None:
    measuring = first_pass(tmp_path)
    assert pickle.loads(pickle.dumps(measuring)) == measuring
    scored = first_pass(tmp_path, scores=Scores(np.zeros(1, np.uint64), np.zeros(1, np.float32)))
    assert len(pickle.dumps(scored)) < 2000


def test_scores_in_any_order_are_found_by_sample(tmp_path: Path) -> None:
    records = [{"problem_id": f"p{number}", "sample_index": index, "mean_logprob": -number - index / 4, "more": 1}
               for number in range(5) for index in range(2)]  # fmt: skip
    publish_scores(tmp_path, [*records, {"problem_id": "q", "sample_index": 0, "mean_logprob": None}])
    scores = read_scores(tmp_path)
    one = sample(PROGRAM)
    assert scores.of(replace(one, problem_id="p3", sample_index=1)) == -3.25
    assert np.isnan(scores.of(replace(one, problem_id="p3", sample_index=2)))
    assert np.isnan(scores.of(replace(one, problem_id="q")))
    found = first_pass(tmp_path, scores, proxy_band=(0.0, 0.5)).measure(
        [replace(one, problem_id=name) for name in ("p0", "p4", "none")]
    )
    assert found["score"][:2].tolist() == [0.0, -4.0]
    assert np.isnan(found["score"][2])


def test_scores_that_are_missing_empty_or_broken_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"filters\.proxy_band: needs the scores .* run launch/score\.py"):
        read_scores(tmp_path)
    publish_scores(tmp_path / "empty", [{"problem_id": "p", "sample_index": 0, "mean_logprob": None}])
    with pytest.raises(UserError, match="contains no score"):
        read_scores(tmp_path / "empty")
    publish_scores(tmp_path / "broken", [{"problem_id": "p", "sample_index": 0, "logprob": 1}])
    with pytest.raises(UserError, match=r"shard-0\.jsonl:1: is not a score of a sample \(KeyError: 'mean_logprob'\)"):
        read_scores(tmp_path / "broken")
