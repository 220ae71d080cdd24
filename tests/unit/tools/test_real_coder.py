"""Tests the experiment on real models without a model: its data, its commands, its results and its tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.real_coder_cells import CELLS, Cell
from benchmarks.real_coder_data import HELDOUT, PER_DIFFICULTY, SEED, choose_heldout, prepare
from benchmarks.real_coder_plot import draw
from benchmarks.real_coder_results import chosen_learning_rate, is_finished, store
from benchmarks.real_coder_run import commands, run
from benchmarks.real_coder_table import tables
from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.cli.compose import compose_config
from megatron_ssd.evaluation.grid import settings_of
from megatron_ssd.schema import Verdict
from tests.helpers.errors import one_line_error
from tests.helpers.jsonl import write_jsonl
from tests.helpers.lcb_rows import lcb_row
from tests.helpers.paths import CODEFORCES, needs
from tests.helpers.samples_run import numbered, publish_samples

BY_NAME = {cell.name: cell for cell in CELLS}
COPIED = "Write a function that counts the number of vowels in the words of a text and ignores the case of letters."
QWEN_CONFIG = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 8, "num_hidden_layers": 1,
               "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": 64,
               "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}  # fmt: skip


def mbpp_row(number: int, text: str) -> dict[str, Any]:
    return {"task_id": number, "text": text, "code": f"def f{number}(a, b=1):\r\n  return SECRET",
            "test_setup_code": "", "test_list": [f"assert f{number}(2) == 3", "assert True"]}  # fmt: skip


def plus_row(task_id: str, prompt: str) -> dict[str, Any]:
    return {"task_id": task_id, "prompt": prompt, "entry_point": "f", "canonical_solution": "    return 1\n",
            "base_input": [[1]], "plus_input": [[2]], "atol": 0}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small folder in the layout of the public data."""
    folder = tmp_path / "data"
    for name in ("mbpp", "rllm_code", "rstar_coder_seed_sft", "lcb_schema", "evalplus"):
        (folder / name).mkdir(parents=True)
    write_jsonl(
        folder / "mbpp/mbpp.jsonl",
        [mbpp_row(number, f"Compute number {number}.") for number in (510, 511, 601)] + [mbpp_row(602, COPIED)],
    )
    write_jsonl(
        folder / "evalplus/MbppPlus.jsonl.gz",
        [plus_row("Mbpp/11", f'"""\n{COPIED}\nassert f(1) == 1\n"""\n'), plus_row("Mbpp/700", '"""\nOther.\n"""\n')],
    )
    write_jsonl(folder / "evalplus/HumanEvalPlus.jsonl.gz", [plus_row("HumanEval/0", 'def f(x):\n    """One."""\n')])
    leetcode = {
        "problem": "Please solve the programming task below using a self-contained code snippet in a markdown code "
        "block.\n\nSum the list.\nPlease complete the following python code precisely:\n```python\n"
        "class Solution:\n    def total(self, nums: List[int]) -> int:\n```",
        "solutions": "SECRET", "tests": {"functional": "def check(candidate):\n    pass\ncheck(Solution().total)"},
    }  # fmt: skip
    (folder / "rllm_code/test_leetcode.json").write_text(json.dumps([leetcode]))
    contests = [lcb_row(0, question_content="Print  the largest number."), lcb_row(1, question_content="Print a tree.")]
    write_jsonl(folder / "lcb_schema/codeforces_408.jsonl", contests)
    texts = ["Print the largest\nnumber.", "Print  a  tree.", "Print a\ntree.", "Print a tree."]
    write_jsonl(
        folder / "rstar_coder_seed_sft/rows.jsonl",
        [
            {"question_id": f"seed_{number}", "question": text, "starter_code": None, "response": "SECRET"}
            for number, text in enumerate(texts)
        ],
    )
    return folder  # fmt: skip


def test_prompts_have_no_solution_and_no_text_of_a_test_problem(data: Path, tmp_path: Path) -> None:
    heldout, out = tmp_path / "heldout.json", tmp_path / "out"
    heldout.write_text(json.dumps({"ids": ["abc_0"]}))
    expected = {"train/short/mbpp": 2, "train/short/leetcode": 1, "train/contests": 1, "validation": 1,
                "test/humaneval_plus": 1, "test/mbpp_plus": 1, "test/codeforces": 1, "ground/mbpp_plus": 2}  # fmt: skip
    found = prepare(data, out, heldout=heldout, expected=expected)
    assert found["train/short/mbpp"] == {"kept": 1, "contaminated": 1}
    prompts = {name: read_jsonl(out / f"train/{name}.jsonl") for name in ("short/mbpp", "short/leetcode", "contests")}
    assert prompts["short/mbpp"] == [{"id": "mbpp-601", "starter_code": "def f601(a, b=1):",
                                      "statement": "Compute number 601.\n\nassert f601(2) == 3"}]  # fmt: skip
    assert prompts["short/leetcode"] == [{"id": "leetcode-0", "statement": "Sum the list.", "starter_code":
                                          "class Solution:\n    def total(self, nums: List[int]) -> int:"}]  # fmt: skip
    assert prompts["contests"] == [{"id": "seed_2", "statement": "Print a\ntree.", "starter_code": ""}]
    assert [row["task_id"] for row in read_jsonl(out / "validation.jsonl")] == [511]
    with one_line_error("test/codeforces: 1 rows: 2 are expected"):
        prepare(data, out, heldout=heldout, expected={**expected, "test/codeforces": 2})


@given(st.lists(st.sampled_from(["easy", "medium", "hard"]), max_size=30), st.integers(0, 3), st.randoms())
def test_the_held_out_problems_do_not_depend_on_the_order(levels: list[str], count: int, random: Any) -> None:
    rows = [{"question_id": f"q{number}", "difficulty": level} for number, level in enumerate(levels)]
    chosen = choose_heldout(rows, seed=1, per_difficulty=count)
    random.shuffle(rows)
    assert choose_heldout(rows, seed=1, per_difficulty=count) == chosen
    assert len(chosen) == sum(min(count, levels.count(level)) for level in set(levels))


@needs(CODEFORCES)
def test_the_stored_ids_are_those_that_the_seed_chooses() -> None:
    rows = read_jsonl(CODEFORCES)
    stored = json.loads(HELDOUT.read_text())
    assert (stored["seed"], stored["per_difficulty"]) == (SEED, PER_DIFFICULTY)
    assert stored["ids"] == choose_heldout(rows, seed=SEED, per_difficulty=PER_DIFFICULTY)


def test_the_plan_stays_within_its_limits() -> None:
    assert sum(cell.hours for cell in CELLS) <= 20
    assert max(cell.hours for cell in CELLS) <= 2


def test_every_command_is_a_valid_configuration_and_shares_what_it_should(tmp_path: Path) -> None:
    models = write_models(tmp_path)
    grids = {}
    for cell in (cell.with_learning_rate("1e-5") for cell in CELLS):
        found = commands(cell, models=models, data=tmp_path, runs=tmp_path)
        assert [command[0] for command in found] == [
            *["launch/pipeline.py"] * bool(cell.training),
            "launch/evaluate.py",
        ]
        config = compose_config(found[-1][1:])
        assert config.evaluation.models == tuple(cell.decodes.split(","))
        assert config.sampling is not None
        grids[cell.name] = {
            model: {one.label for one in settings_of(model, config.evaluation, config.sampling)}
            for model in config.evaluation.models
        }
    training, evaluation = (compose_config([text for text in command[1:] if not text.startswith("--")])
                            for command in commands(BY_NAME["qwen-ssd-T2"].with_learning_rate("1e-5"), models=models,
                                                    data=tmp_path, runs=tmp_path))  # fmt: skip
    assert training.contamination.sets.keys() == {"validation", "codeforces"}
    assert training.sampling is not None
    assert evaluation.sampling is not None
    assert training.sampling.train == evaluation.sampling.train
    assert (training.run_dir, training.optimizer.lr) == (evaluation.run_dir, 1e-5)
    assert grids["qwen-ground"]["base"] == {"T0-k-1-p1"}
    assert grids["qwen-base-p0.8"]["base"] == {*grids["qwen-ssd-p0.8"]["ssd"], "T1.6-k20-p0.8"}
    assert grids["qwen-base-p1"]["base"] == grids["qwen-ssd-p1"]["ssd"]
    assert grids["smollm-base-p1"]["base"] == grids["smollm-ssd-p1"]["ssd"]
    assert grids["qwen-ssd-seed1"]["ssd"] == grids["qwen-lr5e-6"]["ssd"] == {"T1.1-k20-p0.8"}


def test_a_finished_cell_is_skipped_and_the_next_one_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, runs, started = tmp_path / "results", tmp_path / "runs", list[Sequence[str]]()

    def start(command: Sequence[str]) -> int:
        started.append(command)
        cell = BY_NAME["qwen-ground" if len(started) == 1 else "qwen-base-p1"]
        evaluate(cell, runs / cell.name, {"T0-k-1-p1": ["HumanEval/0"]})
        return 0

    def run_both() -> None:
        run(tmp_path, tmp_path, runs, results, names=["qwen-base-p1", "qwen-ground"], start=start)

    run_both()
    assert len(started) == 2
    assert is_finished(BY_NAME["qwen-ground"], results)
    capsys.readouterr()
    run_both()
    assert len(started) == 2
    assert capsys.readouterr().out.splitlines() == ["qwen-ground: finished before", "qwen-base-p1: finished before"]
    with one_line_error("cell qwen-base-p0.8: launch/evaluate.py ended with status 2"):
        run(tmp_path, tmp_path, runs, results, names=["qwen-base-p0.8"], start=lambda command: 2)
    with one_line_error("--cell other: there is no such cell"):
        run(tmp_path, tmp_path, runs, results, names=["other"], start=start)
    with one_line_error("cell qwen-lr5e-6: has no results"):
        run(tmp_path, tmp_path, runs, results, names=["qwen-ssd-p1"], start=start)


def test_the_learning_rate_is_the_best_on_the_validation_problems_and_the_smallest_of_equal_ones(
    tmp_path: Path,
) -> None:
    for lr, passed in {"5e-6": ["1"], "1e-5": ["1", "2"], "3e-5": ["1", "2"]}.items():
        cell = BY_NAME[f"qwen-lr{lr}"]
        evaluate(cell, tmp_path / cell.name, {"T1.1-k20-p0.8": passed}, benchmark="mbpp", problems=("1", "2", "3"))
        store(cell, tmp_path / cell.name, tmp_path / "results", core_hours=1)
    assert chosen_learning_rate(tmp_path / "results") == "1e-5"


def test_the_table_compares_base_and_ssd_by_problem(tmp_path: Path) -> None:
    problems = [f"HumanEval/{number}" for number in range(20)]
    scores = {"qwen-base-p0.8": {"T0.7-k20-p0.8": problems[:10], "T1.1-k20-p0.8": problems[:4]},
              "qwen-ssd-p0.8": {"T0.7-k20-p0.8": problems[:10], "T1.1-k20-p0.8": problems[:12]}}  # fmt: skip
    for name, passed in scores.items():
        evaluate(BY_NAME[name], tmp_path / name, passed, problems=problems)
        store(BY_NAME[name], tmp_path / name, tmp_path / "results", core_hours=1.25)
    draw(tmp_path / "results", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    text = tables(tmp_path / "results")
    assert "| qwen-base-p0.8 | base | test | 1.5 | 1.25 core hours |" in text
    assert "| qwen-base-p1 | base | test | 1.2 | not run |" in text
    rows = {tuple(line.strip("| ").split(" | ")[:2]): line.strip("| ").split(" | ") for line in text.splitlines()}
    assert rows["base", "T0.7-k20-p0.8"][2:4][1].startswith("50.0 (")
    assert rows["SSD", "T1.1-k20-p0.8"][3].startswith("60.0 (")
    assert rows["SSD", "T1.1-k20-p0.8"][4].startswith("+40.0 (")
    assert rows["SSD", "T0.7-k20-p0.8"][4] == "+0.0 (+0.0 to +0.0)"
    assert rows["base at its best", "T0.7-k20-p0.8"][2] == "10"


def evaluate(
    cell: Cell,
    run_dir: Path,
    passed: dict[str, list[str]],
    *,
    benchmark: str = "humaneval_plus",
    problems: Sequence[str] = ("HumanEval/0",),
) -> None:
    """Write what an evaluation writes, with the problems that are passed by each setting."""
    settings: dict[str, Any] = {}
    for label, solved in passed.items():
        for folder in ("generations", "verdicts"):
            (run_dir / "eval" / benchmark / folder / cell.decodes).mkdir(parents=True, exist_ok=True)
        verdicts = [Verdict(problem_id=id_, sample_index=0, status="passed" if id_ in solved else "wrong_answer")
                    for id_ in problems]  # fmt: skip
        write_jsonl(
            run_dir / f"eval/{benchmark}/verdicts/{cell.decodes}/{label}.jsonl", [one.to_json() for one in verdicts]
        )
        write_jsonl(run_dir / f"eval/{benchmark}/generations/{cell.decodes}/{label}.jsonl", [numbered(0).to_json()])
        score = {"1": {"value": len(solved) / len(problems), "low": 0.0, "high": 1.0, "num_problems": len(problems)}}
        settings[label] = {"overall": score, "base_tests": score}
    (run_dir / f"eval/{benchmark}/summary.json").write_text(json.dumps({"settings": {cell.decodes: settings}}))
    if cell.training:
        publish_samples(run_dir, [[numbered(0)]])
        (run_dir / "checkpoints").mkdir()
        write_jsonl(run_dir / "checkpoints/metrics.jsonl", [{"iteration": 1, "loss": 1.0}])


def write_models(folder: Path) -> Path:
    """A folder with the configuration of each base."""
    for name in {cell.model for cell in CELLS}:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(QWEN_CONFIG))
    return folder
