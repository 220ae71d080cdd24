"""Tests for the comparison of a run with the paper's settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.report.paper import COUNTED, SETTINGS, Deviation, deviations, reference_model, shown_settings
from tests.helpers.report_run import read_page, read_summary, run_config


def _settings(**values: object) -> dict[str, object]:
    return {"model.name": "qwen3_30b", **values}


def _one(item: str, settings: dict[str, object]) -> Deviation:
    return next(deviation for deviation in deviations(settings) if deviation.item == item)


def test_every_key_is_a_key_of_the_configuration(tmp_path: Path) -> None:
    settings = shown_settings(run_config(tmp_path / "run"), {})
    missing = [key for setting in SETTINGS for key in setting.keys if settings[key] is None]
    assert missing == list(COUNTED)


def test_every_setting_has_one_value_per_key() -> None:
    for setting in SETTINGS:
        for values in (setting.paper, *setting.by_model.values(), *setting.also):
            assert values is None or len(values) == len(setting.keys), setting.item
            assert values is None or setting.wording.count("{}") == len(setting.keys), setting.item


def test_the_paper_itself_does_not_deviate() -> None:
    for model in ("qwen3_4b_instruct", "qwen3_4b_thinking", "qwen3_30b", "qwen3_30b_thinking", "llama31_8b"):
        settings: dict[str, object] = {"model.name": model}
        for setting in SETTINGS:
            paper = setting.by_model.get(model, setting.paper)
            settings.update(dict(zip(setting.keys, paper, strict=True)) if paper else {})
        assert all(deviation.same in (True, None) for deviation in deviations(settings))


def test_a_changed_value_is_a_deviation_with_both_values() -> None:
    deviation = _one("global batch", _settings(**{"training.global_batch_size": 64}))
    assert dataclasses.asdict(deviation) == {
        "group": "Training", "item": "global batch", "paper": "32 sequences", "this_run": "64 sequences",
        "same": False, "source": "several readings",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "count", "shown", "same"),
    [("rstar_coder", 9, "rstar_coder, 9 problems", False), ("rstar_coder", 10168, "rstar_coder, 10,168 problems", True),
     ("minicode", 10168, "minicode, 10,168 problems", False)],
)  # fmt: skip
def test_training_problems_must_equal_the_papers_in_name_and_number(
    name: str, count: int, shown: str, same: bool
) -> None:
    found = _one("training problems", _settings(**{"problems.name": name, "problems.count": count}))
    assert (found.this_run, found.same) == (shown, same)
    assert "10,168" in found.paper


@pytest.mark.parametrize(
    ("dates", "count", "shown", "same"),
    [
        (["2025-02-01", "2025-04-06"], 131, "livecodebench, v6 window, 131 problems", True),
        (["2024-08-03", "2025-02-01"], 279, "livecodebench, v5 window, 279 problems", True),
        (["2025-02-09", "2025-02-09"], 6, "livecodebench, v6 window, 6 problems", False),
        (["2023-05-07", "2025-04-06"], 1055, "livecodebench, 2023-05-07 to 2025-04-06, 1,055 problems", False),
        (["2023-05-07", "2023-05-07"], 131, "livecodebench, 2023-05-07, 131 problems", False),
        (None, 131, "livecodebench, undated, 131 problems", False),
    ],
)
def test_a_benchmark_must_equal_the_papers_in_dates_and_number(
    tmp_path: Path, dates: list[str] | None, count: int, shown: str, same: bool
) -> None:
    stage = Stage(name="eval", run_dir=tmp_path, config={}, inputs={})
    stage.begin()
    benchmark = {"format": "livecodebench", "problems": count, "dates": dates}
    others = {"format": "mbpp_plus", "problems": 378, "dates": None}
    manifest = stage.publish(facts={"benchmarks": {"mbpp_plus": others, "livecodebench": benchmark}})
    settings = shown_settings(run_config(tmp_path / "run", benchmark="livecodebench"), {"eval": manifest})
    found = _one("benchmark", settings)
    assert (found.this_run, found.same) == (shown, same)


def test_a_run_on_few_real_problems_deviates_from_the_paper(published_real: Path) -> None:
    listed = read_summary(published_real)["deviations"]
    found = {deviation["item"]: (deviation["this_run"], deviation["same"]) for deviation in listed}
    assert found["training problems"] == ("rstar_coder, 600 problems", False)
    assert found["benchmark"] == ("livecodebench, undated, 300 problems", False)
    assert "livecodebench, undated, 300 problems" in read_page(published_real)


def test_the_value_of_either_of_two_conflicting_sources_is_the_same() -> None:
    for value, same in ((20, True), (10, True), (5, False)):
        assert _one("samples per problem", _settings(**{"evaluation.num_samples": value})).same is same


def test_filters_must_be_those_of_one_source() -> None:
    item = "dropped: empty responses, one-line stubs, share of the shortest"
    keys = ("filters.drop_empty", "filters.drop_one_line_stubs", "filters.drop_shortest_fraction")
    for values, same in (((True, True, 0.0), True), ((True, False, 0.1), True), ((True, True, 0.1), False)):
        assert _one(item, _settings(**dict(zip(keys, values, strict=True)))).same is same


def test_filters_that_the_paper_does_not_have_are_named(tmp_path: Path) -> None:
    item, config = "dropped: by other filters", run_config(tmp_path / "run")
    assert _one(item, shown_settings(config, {})).same is True
    filters = FilterConfig(drop_duplicates=True, proxy_band=(0.1, 0.9), length_capped="mask_end", mask_end_tokens=9)
    deviation = _one(item, shown_settings(dataclasses.replace(config, filters=filters), {}))
    assert (deviation.this_run, deviation.same) == ("drop_duplicates, proxy_band", False)
    stage = Stage(name="dataset", run_dir=tmp_path, config={"filters": dataclasses.asdict(FilterConfig())}, inputs={})
    stage.begin()
    recorded = shown_settings(dataclasses.replace(config, filters=filters), {"dataset": stage.publish()})
    assert _one(item, recorded).this_run == "none"
    assert _one("responses cut at the length limit", recorded).same is True


def test_the_papers_decoding_depends_on_the_model_and_may_be_unpublished() -> None:
    item = "decoding of the training data"
    assert _one(item, {"model.name": "qwen3_4b_thinking"}).paper == "T 1.1, top-k 20, top-p 0.95"
    assert _one(item, {"model.name": "qwen3_30b"}).paper == "T 1.6, top-k 20, top-p 0.8"
    unpublished = _one(item, {"model.name": "llama31_8b"})
    assert (unpublished.paper, unpublished.same, unpublished.source) == ("not published", None, "not published")


def test_other_models_are_compared_with_the_main_one() -> None:
    assert reference_model({"model.name": "tiny"}) == "qwen3_30b"
    assert reference_model({"model.name": "qwen3_30b_thinking"}) == "qwen3_30b_thinking"


def test_small_learning_rates_are_in_scientific_notation() -> None:
    assert _one("peak learning rate", _settings(**{"optimizer.lr": 3e-4})).this_run == "3e-4"


def test_settings_in_the_manifest_of_the_samples_are_found(tmp_path: Path) -> None:
    decoding = {"temperature": 2.0, "top_k": -1, "top_p": 1.0}
    stage = Stage(name="samples", run_dir=tmp_path, config={"decoding": decoding, "max_tokens": 77}, inputs={})
    stage.begin()
    settings = shown_settings(run_config(tmp_path / "run"), {"samples": stage.publish()})
    assert settings["sampling.train.temperature"] == 2.0
    assert settings["sampling.max_tokens"] == 77
    assert settings["evaluation.max_tokens"] == 32768
