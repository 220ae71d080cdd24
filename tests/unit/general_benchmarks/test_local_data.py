"""Tests for local files that replace the Hub's data in lm-eval's tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from megatron_ssd.errors import UserError
from megatron_ssd.general_benchmarks.local_data import (
    check_data,
    data_identity,
    rows_on_hub,
    write_tasks,
)
from tests.helpers.jsonl import write_jsonl

OWN = {"test_split": "test", "fewshot_split": "dev", "dataset_name": "anatomy"}
QUESTION = {"question": "q", "choices": ["1", "2", "3", "4"], "answer": 0}


def written(tmp_path: Path, data: Path, own: dict[str, Any] = OWN) -> dict[str, Any]:
    """The task configuration that is written for ``data``; ``own`` are the task's own settings."""
    folder = tmp_path / "yaml"
    folder.mkdir(exist_ok=True)
    (path,) = write_tasks(folder, "some_task", {"some_task": (own, Path("/lm_eval/some.yaml"))}, data=str(data))
    found: dict[str, Any] = yaml.safe_load(Path(path).read_text())
    return found


def files_of(config: dict[str, Any]) -> dict[str, list[str]]:
    """Split -> names of its files."""
    return {split: [Path(f).name for f in files] for split, files in config["dataset_kwargs"]["data_files"].items()}


def test_a_file_is_the_evaluated_split_without_other_splits(tmp_path: Path) -> None:
    config = written(tmp_path, write_jsonl(tmp_path / "rows.jsonl", [QUESTION]))
    assert config["include"] == "/lm_eval/some.yaml"
    assert (config["dataset_path"], config["dataset_name"]) == ("json", None)
    assert files_of(config) == {"test": ["rows.jsonl"]}
    assert config["fewshot_split"] is None
    assert "test_split" not in config


def test_a_task_without_a_test_split_is_evaluated_on_its_validation_split(tmp_path: Path) -> None:
    own = {"validation_split": "validation", "training_split": "train"}
    config = written(tmp_path, write_jsonl(tmp_path / "rows.jsonl", [QUESTION]), own)
    assert files_of(config) == {"validation": ["rows.jsonl"]}
    assert config["training_split"] is None


def test_names_of_files_in_a_folder_begin_with_their_split(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("test-00000-of-00002", "test-00001-of-00002", "dev-00000-of-00001", "auxiliary_train-00000-of-00001"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([QUESTION]), folder / f"{name}.parquet")
    config = written(tmp_path, folder)
    assert config["dataset_path"] == "parquet"
    assert files_of(config) == {
        "dev": ["dev-00000-of-00001.parquet"],
        "test": ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"],
    }
    assert "fewshot_split" not in config


def test_a_folder_without_the_evaluated_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "dev.jsonl", [QUESTION])
    with pytest.raises(UserError, match=r"no file of the split test, .*; name it test\.jsonl"):
        written(tmp_path, tmp_path / "rows")


def test_file_formats_cannot_be_mixed(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "test.jsonl", [QUESTION])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([QUESTION]), tmp_path / "rows" / "dev.parquet")
    with pytest.raises(UserError, match="more than one kind"):
        check_data("mmlu", str(tmp_path / "rows"))


def test_a_group_is_split_by_subject(tmp_path: Path) -> None:
    rows = [{"subject": subject, **QUESTION, "question": f"{subject} {n}"}
            for n in range(3) for subject in ("virology", "anatomy")]  # fmt: skip
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "test.jsonl", rows)
    write_jsonl(tmp_path / "rows" / "dev.jsonl", [{"subject": "anatomy", **QUESTION}, {"subject": "law", **QUESTION}])
    own = {f"mmlu_{name}": ({**OWN, "dataset_name": name}, Path(f"/{name}.yaml"))
           for name in ("anatomy", "law", "virology")}  # fmt: skip
    paths = write_tasks(tmp_path, "mmlu", own, data=str(tmp_path / "rows"))
    configs = [yaml.safe_load(Path(path).read_text()) for path in paths]
    assert [config["task"] for config in configs] == ["mmlu_anatomy", "mmlu_virology"]  # law has only examples
    assert [config["include"] for config in configs] == ["/anatomy.yaml", "/virology.yaml"]
    (file,) = configs[1]["dataset_kwargs"]["data_files"]["test"]
    questions = [json.loads(line)["question"] for line in Path(file).read_text().splitlines()]
    assert questions == [f"virology {n}" for n in range(3)]
    assert configs[1]["fewshot_split"] is None
    assert "fewshot_split" not in configs[0]


def test_an_unknown_subject_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"subject": "anatomi", **QUESTION}])
    with pytest.raises(UserError, match=r"rows.jsonl:1: subject = 'anatomi': is not a subject of mmlu"):
        write_tasks(tmp_path, "mmlu", {"mmlu_anatomy": (OWN, Path("/a.yaml"))}, data=str(path))


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("cruxeval_output", {"id": "a", "code": "c", "input": "1"}, "output"),
        ("cruxeval_input", {"code": "c", "input": "1", "output": "1"}, "id"),
        ("aime24", {"problem": "p", "answer": "1"}, "Problem, Answer"),
        ("aime25", {"prompt": "p", "answer": 1}, "problem"),
        ("mmlu", QUESTION, "subject"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, task: str, row: dict[str, Any], message: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=rf"rows.jsonl:1 .*has no column {message}; the Hub's columns for {task} are"):
        check_data(task, str(path))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"general_benchmarks.data.aime25 = .*none.jsonl: does not exist; name a file"):
        check_data("aime25", str(tmp_path / "none.jsonl"))


def test_the_identity_of_a_file_depends_only_on_its_content(tmp_path: Path) -> None:
    paths = [
        write_jsonl(tmp_path / name, [QUESTION] * n) for name, n in (("a.jsonl", 1), ("b.jsonl", 1), ("c.jsonl", 2))
    ]
    one, same, other = (data_identity("mmlu", str(path)) for path in paths)
    assert one == same != other


def test_row_counts_are_known_for_complete_benchmarks_only() -> None:
    assert [rows_on_hub(name) for name in ("cruxeval_input_cot", "aime25", "mmlu")] == [800, 30, 14042]
    assert [rows_on_hub(name) for name in ("mmlu_anatomy", "gsm8k")] == [None, None]
