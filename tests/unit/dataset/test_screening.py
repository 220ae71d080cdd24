"""What becomes of a sample, and that a first pass changes nothing but the order of work."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.dataset import FilterConfig, LoopConfig
from megatron_ssd.dataset.scores import Scores, read_scores
from megatron_ssd.dataset.screening import COUNTED, DROPPED, Decision, Screen
from megatron_ssd.dataset.set_filters import REASONS, settle
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Sample
from tests.unit.dataset.test_filters import PROGRAM, sample

LOOP = LoopConfig(min_repeats=2, min_tokens=4)
LOOPING = sample("a\nb", finish_reason="length", token_ids=(1, 2, 3, 7, 8, 7, 8, 7))
CUT = sample("a\nb", finish_reason="length", token_ids=(1, 2, 3, 4, 5, 6))


def decide(row: Sample, settled: int | None = None, **filters: object) -> Decision:
    return Screen(filters=FilterConfig(loop=LOOP, **filters)).decide(row, settled)  # type: ignore[arg-type]


def publish_scores(run_dir: Path, rows: list[dict[str, object]], samples: str | None = None) -> None:
    inputs = {} if samples is None else {"samples": samples}
    stage = Stage(name="scores", run_dir=run_dir, config={}, inputs=inputs)
    work = stage.begin()
    half = len(rows) // 2
    for name, part in (("shard-0.jsonl", rows[half:]), ("shard-1.jsonl", rows[:half])):
        with JsonlWriter(work / name) as writer:
            for row in part:
                writer.write(row)
    stage.publish()


def test_a_kept_sample_has_the_ids_as_sampled_and_counts_what_it_is() -> None:
    decision = decide(sample(PROGRAM, token_ids=(5, 6)))
    assert decision == Decision(reason=None, response_token_ids=[5, 6], counts={
        "responses": 1, "no_code": 0, "length_capped": 0, "looping": 0,
    })  # fmt: skip


def test_dropped_samples_are_counted_as_responses_all_the_same() -> None:
    decision = decide(LOOPING, length_capped="drop")
    assert (decision.reason, decision.response_token_ids) == ("length_capped", [])
    assert decision.counts == {
        "responses": 1, "no_code": 1, "length_capped": 1, "looping": 1, DROPPED + "length_capped": 1,
    }  # fmt: skip


def test_a_prompt_that_was_not_run_is_no_response() -> None:
    assert decide(sample(finish_reason="skipped")).counts == {DROPPED + "skipped": 1}


def test_keep_keeps_the_loop() -> None:
    assert decide(LOOPING).response_token_ids == LOOPING.response_token_ids


def test_mask_end_leaves_out_the_loop_or_the_last_tokens() -> None:
    decision = decide(LOOPING, length_capped="mask_end", mask_end_tokens=1)
    assert decision.response_token_ids == [1, 2, 3]
    assert (decision.counts["end_masked"], decision.counts["end_masked_tokens"]) == (1, 5)
    decision = decide(CUT, length_capped="mask_end", mask_end_tokens=2)
    assert decision.response_token_ids == [1, 2, 3, 4]
    assert (decision.counts["end_masked"], decision.counts["end_masked_tokens"]) == (1, 2)
    assert decide(CUT, length_capped="mask_end", mask_end_tokens=6).reason == "all_masked"


def test_mask_end_touches_nothing_else() -> None:
    assert decide(CUT, length_capped="mask_end", mask_end_tokens=0).response_token_ids == CUT.response_token_ids
    whole = sample(PROGRAM, token_ids=(7,) * 50)
    decision = decide(whole, length_capped="mask_end")
    assert decision.response_token_ids == whole.response_token_ids
    assert "end_masked" not in decision.counts


def test_a_settled_row_is_not_filtered_again() -> None:
    stub = sample("pass")
    assert decide(stub).reason == "one_line_stub"
    assert decide(stub, settled=0).reason is None
    assert decide(sample(PROGRAM), settled=REASONS.index("shortest")).reason == "shortest"


@pytest.mark.parametrize("filters", [{}, {"drop_no_code": True, "drop_unparsable": True, "length_capped": "mask_end"}])
def test_a_first_pass_finds_the_same_reasons(filters: dict[str, object]) -> None:
    rows = [sample(), sample("pass"), sample(PROGRAM), sample("a\nb"), sample("```\n1 +\n```\nx"), LOOPING, CUT,
            sample(finish_reason="skipped")]  # fmt: skip
    screen = Screen(filters=FilterConfig(loop=LOOP, **filters))  # type: ignore[arg-type]
    settled = settle(screen.measure(rows), screen.filters)
    assert [REASONS[place] for place in settled] == [screen.decide(row).reason for row in rows]
    for row, place in zip(rows, settled.tolist(), strict=True):
        assert screen.decide(row, place) == screen.decide(row)


def test_every_count_is_among_those_that_the_data_set_begins_with() -> None:
    for row in (LOOPING, CUT, sample(PROGRAM)):
        counts = decide(row, length_capped="mask_end", mask_end_tokens=1).counts
        assert set(counts) <= set(COUNTED)


def test_a_screen_crosses_process_borders() -> None:
    screen = Screen(filters=FilterConfig(), scores=Scores(np.zeros(1, np.uint64), np.zeros(1, np.float32)))
    assert pickle.loads(pickle.dumps(Screen(filters=FilterConfig()))) == Screen(filters=FilterConfig())
    assert len(pickle.dumps(screen)) < 2000


def test_scores_are_found_by_sample_whatever_their_order(tmp_path: Path) -> None:
    rows = [{"problem_id": f"p{number}", "sample_index": index, "mean_logprob": -number - index / 4, "more": 1}
            for number in range(5) for index in range(2)]  # fmt: skip
    publish_scores(tmp_path, [*rows, {"problem_id": "q", "sample_index": 0, "mean_logprob": None}])
    scores = read_scores(tmp_path)
    one = sample(PROGRAM)
    assert scores.of(dataclasses.replace(one, problem_id="p3", sample_index=1)) == -3.25
    assert np.isnan(scores.of(dataclasses.replace(one, problem_id="p3", sample_index=2)))
    assert np.isnan(scores.of(dataclasses.replace(one, problem_id="q")))
    found = Screen(filters=FilterConfig(proxy_band=(0.0, 0.5)), scores=scores).measure(
        [dataclasses.replace(one, problem_id=name) for name in ("p0", "p4", "none")]
    )
    assert found["score"][:2].tolist() == [0.0, -4.0]
    assert np.isnan(found["score"][2])


def test_scores_that_are_missing_empty_or_broken_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"filters\.proxy_band: needs the scores .* run launch/score\.py"):
        read_scores(tmp_path)
    publish_scores(tmp_path / "empty", [{"problem_id": "p", "sample_index": 0, "mean_logprob": None}])
    with pytest.raises(UserError, match="holds no score"):
        read_scores(tmp_path / "empty")
    publish_scores(tmp_path / "broken", [{"problem_id": "p", "sample_index": 0, "logprob": 1}])
    with pytest.raises(UserError, match=r"shard-0\.jsonl:1: is no score of a sample \(KeyError: 'mean_logprob'\)"):
        read_scores(tmp_path / "broken")
