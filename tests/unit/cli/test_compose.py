"""Tests that every YAML file of the project composes, and the error messages for invalid overrides."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.cli.compose import CONFIG_DIR, ConfigSource, compose_config, groups, text_override, values_of_tool
from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.config.generation import SamplingConfig
from megatron_ssd.errors import ConfigError
from megatron_ssd.evaluation.grid import grid_cells
from tests.helpers.errors import config_error

# Overrides that a group needs: a CPU has no TransformerEngine, and paths have no defaults.
_COMPANIONS = {
    ("cluster", "cpu"): ["precision=fp32"],
    ("experiment", "real_coder"): ["problems.path=rows.jsonl"],
    ("problems", "rows"): ["problems.path=rows.jsonl"],
    ("benchmark", "livecodebench"): ["benchmark.sets.livecodebench.path=problems.jsonl"],
    ("benchmark", "livecodebench_v5"): ["benchmark.sets.livecodebench_v5.path=problems.jsonl"],
    ("benchmark", "livecodebench_v6"): ["benchmark.sets.livecodebench_v6.path=problems.jsonl"],
    **{
        ("contamination", name): [f"contamination.sets.{name}.path=problems.jsonl"]
        for name in ("humaneval", "mbpp", "aime", "livecodebench")
    },
}
_SHIPPED = [(group, name) for group, names in groups().items() for name in names]
# The published numbers of parameters.
_PARAMETERS = {
    "qwen3_4b_instruct": 4_022_468_096,
    "qwen3_4b_thinking": 4_022_468_096,
    "qwen3_30b": 30_532_122_624,
    "qwen3_30b_thinking": 30_532_122_624,
    "llama31_8b": 8_030_261_248,
    "qwen25_coder_0.5b": 494_032_768,
    "qwen25_coder_1.5b": 1_543_714_304,
    "qwen25_coder_3b": 3_085_938_688,
    "qwen25_coder_7b": 7_615_616_512,
    "qwen25_coder_14b": 14_770_033_664,
    "qwen25_coder_32b": 32_763_876_352,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1.7b": 1_711_376_384,
}


def test_the_shipped_groups_are_found() -> None:
    assert {"model", "parallel", "precision", "sampling", "problems", "benchmark", "contamination", "optimizer",
            "cluster", "experiment", "filters", "sweep"} == set(groups())  # fmt: skip
    assert set(_PARAMETERS) | {"tiny", "tiny_moe"} == set(groups()["model"])


@pytest.mark.parametrize(("group", "name"), _SHIPPED, ids=["/".join(each) for each in _SHIPPED])
def test_every_shipped_yaml_composes(group: str, name: str) -> None:
    config = compose_config([f"{group}={name}", *_COMPANIONS.get((group, name), [])])
    assert config.run_dir.startswith("runs/")
    if group == "model":
        assert config.model is not None
        assert config.model.name == name
        assert config.model.num_parameters() == _PARAMETERS.get(name, config.model.num_parameters())


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "scale").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_scale_is_applied_by_its_experiment_and_problems(path: Path) -> None:
    experiment, _, problems = path.stem.partition("-")
    iterations = compose_config([f"experiment={experiment}", f"problems={problems}"]).training.train_iters
    text = path.read_text()
    if inherited := re.search(r"^  - (\S+)$", text, re.MULTILINE):
        text = path.with_name(f"{inherited[1]}.yaml").read_text() + text
    assert re.findall(r"train_iters: (\d+)", text)[-1] == str(iterations)


@pytest.mark.parametrize("overrides", [["model=tiny"], ["experiment=demo", "seed=3"], ["filters=none"]])
def test_a_leading_plus_has_no_effect(overrides: list[str]) -> None:
    assert compose_config([f"+{override}" for override in overrides]) == compose_config(overrides)


def test_a_model_selects_its_layout_and_the_command_line_wins() -> None:
    assert compose_config(["+model=qwen3_30b"]).parallel.expert_model_parallel_size == 8
    assert compose_config(["+model=qwen3_4b_instruct", "parallel=single"]).parallel.world_size == 1
    assert compose_config(["+experiment=demo", "parallel=dp2", "model=tiny_moe"]).model.name == "tiny_moe"  # type: ignore[union-attr]


def test_a_sampling_group_overrides_that_of_an_experiment() -> None:
    sampling = compose_config(["+experiment=demo", "sampling=noisy"]).sampling
    assert sampling is not None
    assert (sampling.train.temperature, sampling.train.top_k, sampling.train.top_p) == (2.0, -1, 1.0)
    assert sampling.max_tokens == 96


def test_null_chooses_no_file_of_a_group() -> None:
    assert compose_config(["experiment=demo", "benchmark=null"]).benchmark is None
    assert compose_config(["sampling=null"]).sampling is None


def test_a_run_that_chooses_no_sampling_uses_the_authors_example() -> None:
    example = compose_config([]).sampling
    assert example is not None
    assert example == SamplingConfig()
    assert example.train.label == "T1.5-k20-p0.8"
    assert "the example of the paper's authors" in example.label
    hotter = compose_config(["sampling.train.temperature=1.2"]).sampling
    assert hotter is not None
    assert hotter.train.label == "T1.2-k20-p0.8"
    assert "authors" not in hotter.label


@pytest.mark.parametrize("overrides", [["+model=qwen3_30b"], ["+experiment=demo"]])
def test_a_sweep_replaces_the_grid_of_an_experiment_and_the_command_line_wins(overrides: list[str]) -> None:
    wide = compose_config([*overrides, "+sweep=paper"])
    assert wide.sampling is not None
    assert wide.evaluation.top_ks == (10, 20, -1)
    cells = grid_cells(wide.evaluation, wide.sampling)
    assert len(cells) == 54
    assert wide.evaluation.num_samples == compose_config(overrides).evaluation.num_samples
    narrow = compose_config([*overrides, "+sweep=paper", "evaluation.top_ks=[20]"]).evaluation
    assert (narrow.top_ks, narrow.top_ps) == ((20,), wide.evaluation.top_ps)


def test_the_papers_sweep_contains_every_published_decode() -> None:
    evaluation = compose_config(["+sweep=paper"]).evaluation
    for name in ("qwen3_4b_instruct", "qwen3_4b_thinking", "qwen3_30b", "ablation_best"):
        sampling = compose_config([f"sampling={name}"]).sampling
        assert sampling is not None
        cells = grid_cells(evaluation, sampling)
        assert {sampling.train, sampling.eval, sampling.default} <= set(cells), name


def test_both_presets_of_the_papers_filters_exist() -> None:
    assert compose_config(["filters=paper"]).filters == compose_config([]).filters == FilterConfig()
    code = compose_config(["filters=reference_code"]).filters
    assert (code.drop_empty, code.drop_one_line_stubs, code.drop_shortest_fraction) == (True, False, 0.1)
    none = compose_config(["filters=none", "filters.proxy_band=[0.1,0.9]"]).filters
    assert (none.drop_empty, none.drop_one_line_stubs, none.proxy_band) == (False, False, (0.1, 0.9))


def test_several_contamination_presets_combine() -> None:
    paths = [f"contamination.sets.{name}.path={name}.jsonl" for name in ("humaneval", "aime")]
    sets = compose_config(["contamination=[humaneval,aime]", *paths]).contamination.sets
    assert {name: (one.path, one.columns, one.id) for name, one in sets.items()} == {
        "humaneval": ("humaneval.jsonl", ("prompt",), "task_id"), "aime": ("aime.jsonl", ("problem",), "id"),
    }  # fmt: skip


def test_the_demos_run_folder_depends_on_its_problems() -> None:
    assert compose_config(["+experiment=demo"]).run_dir == "runs/demo-minicode"
    config = compose_config(["+experiment=demo", "problems=rstar_coder", "problems.path=rows", "problems.limit=64"])
    assert config.run_dir == "runs/demo-rstar_coder"
    assert config.problems is not None
    assert (config.problems.path, config.problems.limit) == ("rows", 64)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["experiment=[h100_64k,b200_8k]"], ["experiment = [h100_64k,b200_8k]", "takes one name"]),
        (["parallel=cp16"], ["parallel = 'cp16'", "did you mean cp8_ep16?"]),
        (["+model=qwen"], ["model = 'qwen'", "no such choice", "qwen3_30b"]),
        (["training.train_iter=3"], ["training.train_iter = 3", "did you mean training.train_iters?"]),
        (["training.train_iters=many"], ["training.train_iters = 'many'", "integer"]),
        (["evaluation.top_k=20"], ["evaluation.top_k = 20", "did you mean evaluation.top_ks?"]),
        (["lr=3"], ["lr = 3", "did you mean optimizer.lr?"]),
        (["training.lr=3"], ["training.lr = 3", "did you mean optimizer.lr?"]),
        (
            ["problems=rows", "problems.path=x", "problems.columns.statment=text"],
            ["problems.columns.statment = 'text'", "did you mean problems.columns.statement?"],
        ),
        (["problems=rows", "problems.columns.statement=text"], ["problems.path = null"]),
        (["problems=rstar_coder", "problems.path=x", "problems.columns.statement=text"], ["is only for problems=rows"]),
        (["engine.backend=server", "engine.endpoints=http://a:1/v1"], ["write engine.endpoints=[http://a:1/v1]"]),
        (["+experiment=demo", "sampling.train.temperature=-1"], ["sampling.train.temperature = -1.0: must be"]),
        (
            ["+experiment=demo", "sampling.temperature=1"],
            ["did you mean sampling.train.temperature or sampling.eval.temperature or sampling.default.temperature?"],
        ),
        (["seed=null"], ["seed = null: ", "integer"]),
        (["foo"], ["'foo'", "KEY=VALUE"]),
        (["seed={"], ["seed={"]),
        (["run_dir=${nothing.here}"], ["nothing.here"]),
        (["contamination=[humaneval,human]"], ["contamination = 'human'", "did you mean humaneval?"]),
        (["contamination=mbpp"], ["contamination.sets.mbpp.path = null", "set it to a file"]),
        (["benchmark=livecodebench"], ["benchmark.sets.livecodebench.path = null", "set it to a file"]),
        (
            ["benchmark=[livecodebench,mbpp_plus]", "benchmark.path=x"],
            ["benchmark.path = 'x'", "mean benchmark.sets.livecodebench.path or benchmark.sets.mbpp_plus.path?"],
        ),
        (["benchmark.limit=3"], ["benchmark.limit = 3", "did you mean benchmark.sets.NAME.limit?"]),
        (["benchmark.sets._b.format=minicode"], ["benchmark.sets._b", "of a folder"]),
        (["benchmark.sets.mine.path=x"], ["benchmark.sets.mine.format is not set"]),
        (
            ["benchmark=mbpp_plus", "benchmark.sets.mbpp_plus.path=x", "benchmark.sets.mbpp_plus.end_date=2025-01-01"],
            ["is for livecodebench, and this is mbpp_plus"],
        ),
    ],
)
def test_invalid_overrides_are_one_line(overrides: list[str], parts: list[str]) -> None:
    with config_error(*parts):
        compose_config(overrides)


def test_a_tools_argument_that_is_not_yaml_is_one_line() -> None:
    with config_error("packages=[numpy", "expected ',' or ']'"):
        values_of_tool(["packages=[numpy"])


NAMES = st.text(st.sampled_from("=,()[]{}'\"\\$ \u00eb\u65e5:#~&;%+-.1x/"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(NAMES)
def test_any_text_can_be_given_as_an_override(name: str) -> None:
    assert compose_config([text_override("run_dir", name)]).run_dir == name


@pytest.mark.parametrize("name", ["a=b", "a,b", "run (1)", "[1]", "run[1]", "{a}", "{a:1}", "\u00eb", "1", "a#b"])
def test_the_error_for_text_without_quotes_shows_it_with_quotes(name: str) -> None:
    with config_error(f"""quote it for Hydra and for the shell: "run_dir='{name}'\""""):
        compose_config([f"run_dir={name}"])


def test_text_that_the_shell_would_change_is_shown_in_its_quotes() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(["run_dir=it's"])
    (typed,) = shlex.split(str(caught.value).rpartition("shell: ")[2])
    assert compose_config([typed]).run_dir == "it's"


def test_an_argument_that_is_not_text_in_the_locale_is_one_line() -> None:
    for compose in (values_of_tool, compose_config):
        with pytest.raises(ConfigError) as caught:
            compose(["run_dir='o\udcc3'"])
        assert "\n" not in str(caught.value)


def test_hidden_files_and_folders_are_no_choices(tmp_path: Path) -> None:
    for name in ("model/mine.yaml", "model/._mine.yaml", ".ipynb_checkpoints/mine.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a: 1")
    shipped, found = groups(), groups(ConfigSource(tmp_path))
    assert found == {**shipped, "model": sorted([*shipped["model"], "mine"])}
