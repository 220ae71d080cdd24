"""Makes lm-eval tasks read local files instead of data sets on the Hub.

The YAML includes lm-eval's own and changes only the source of the rows; prompts, filters and metrics stay the same. A
file of a group (MMLU) is split by its column ``subject``, whose values are the names of the data sets on the Hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.hub import local_path
from megatron_ssd.errors import UserError
from megatron_ssd.problems.table import ENDINGS, Table, open_table

T = TypeVar("T")

SUBJECT = "subject"
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
# The Hub's columns that lm-eval's task, or the checker of its programs, reads.
_COLUMNS = {
    "cruxeval": ("id", "code", "input", "output"),
    "aime": ("Question", "Answer"),
    "aime24": ("Problem", "Answer"),
    "aime25": ("problem", "answer"),
    "mmlu": (SUBJECT, "question", "choices", "answer"),
}
_ROWS = {"cruxeval": 800, "aime": 933, "aime24": 30, "aime25": 30, "mmlu": 14042}


def check_data(task: str, path: str) -> None:
    """Read every row of a task's local files.

    Raises:
        UserError: there is no file, a file cannot be read, or a row lacks one of the Hub's columns.
    """
    for _ in _open(task, path).rows(_of_family(_COLUMNS, task) or ()):
        pass


def data_identity(task: str, path: str) -> str:
    """A hash of the content of the files. Raises ``UserError`` if they cannot be read."""
    return _open(task, path).identity


def rows_on_hub(task: str) -> int | None:
    """The number of rows of the split on the Hub, which published numbers are over; None if it is not known."""
    return None if task.startswith("mmlu_") else _of_family(_ROWS, task)


def write_tasks(
    folder: Path, name: str, originals: Mapping[str, tuple[Mapping[str, Any], Path]], *, data: str
) -> list[str]:
    """Write the YAML of a task that reads ``data``, or of each task of a group that has rows there; returns the paths.

    Args:
        folder: where to write them, and the rows of each task of a group.
        name: the task or the group.
        originals: task -> lm-eval's YAML, with its includes merged, and the path of that YAML.
        data: file or folder; for a group with a column ``subject``.

    Raises:
        UserError: a folder has no file of the evaluated split, files are of different kinds, or a row lacks the column
            or names a subject that no task has.
    """
    first, _ = next(iter(originals.values()))
    files = _files(name, first, data)
    by_task = {name: files} if list(originals) == [name] else _split(folder, name, originals, files)
    # A subject may have few-shot examples alone.
    return [_write(folder, task, *originals[task], found) for task, found in by_task.items()
            if _evaluated(first) in found]  # fmt: skip


def _split(
    folder: Path, group: str, originals: Mapping[str, tuple[Mapping[str, Any], Path]], files: Mapping[str, list[Path]]
) -> dict[str, dict[str, list[Path]]]:
    """Task -> split -> the file with its rows, by subject."""
    task_of = {str(config.get("dataset_name")): task for task, (config, _) in originals.items()}
    lines: dict[tuple[str, str], list[str]] = {}
    for split, names in files.items():
        for row in _table(group, names).rows(_COLUMNS["mmlu"]):
            subject = str(row.values[SUBJECT])
            if subject not in task_of:
                listed = ", ".join(sorted(task_of)[:3])
                raise row.error(SUBJECT, f"is not a subject of {group}",
                                fix=f"the {len(task_of)} subjects are {listed} and so on")  # fmt: skip
            lines.setdefault((subject, split), []).append(json.dumps(row.values) + "\n")
    found: dict[str, dict[str, list[Path]]] = {}
    for (subject, split), of_subject in sorted(lines.items()):
        path = folder / f"{group}-{subject}-{split}.jsonl"
        write_atomically(path, "".join(of_subject))
        found.setdefault(task_of[subject], {})[split] = [path]
    return found


def _write(folder: Path, name: str, original: Mapping[str, Any], include: Path, files: Mapping[str, list[Path]]) -> str:
    (kind,) = {"parquet" if file.suffix == ".parquet" else "json" for names in files.values() for file in names}
    changed = {
        "include": str(include),
        "task": name,
        "dataset_path": kind,
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: [str(f) for f in names] for split, names in files.items()},
            "cache_dir": str(folder / "cache"),
        },
        # lm-eval must not load a missing split; ``harness`` reports tasks that need one.
        **{key: None for key in _SPLITS if original.get(key) is not None and original[key] not in files},
    }
    path = folder / f"{name}.yaml"
    write_atomically(path, yaml.safe_dump(changed, sort_keys=False))
    return str(path)


def _files(task: str, original: Mapping[str, Any], data: str) -> dict[str, list[Path]]:
    """Split -> files, with the split names of lm-eval's YAML."""
    evaluated = _evaluated(original)
    names = {str(original[key]) for key in _SPLITS if original.get(key) is not None}
    files = {split: [Path(f).resolve() for f in table.files] for split, table in _by_split(task, data).items()}
    if "" in files:
        return {evaluated: files[""]}
    found = {split: files[split] for split in files if split in names}
    if evaluated not in found:
        raise UserError(
            f"general_benchmarks.data.{task} = {data}",
            rule=f"the folder has no file of the split {evaluated}, on which {task} is evaluated",
            fix=f"name it {evaluated}.jsonl or {evaluated}-00000-of-00001.parquet",
        )
    return found


def _evaluated(original: Mapping[str, Any]) -> str:
    return str(original.get("test_split") or original.get("validation_split"))


def _by_split(task: str, data: str) -> dict[str, Table]:
    """Split -> its files; the split is "" if ``data`` is a file."""
    table = _open(task, data)
    if local_path(data).is_file():
        return {"": table}
    splits: dict[str, list[Path]] = {}
    for name in map(Path, table.files):
        splits.setdefault(name.name.split(".")[0].split("-")[0], []).append(name)
    return {split: _table(task, names) for split, names in splits.items()}


def _open(task: str, data: str) -> Table:
    key = f"general_benchmarks.data.{task}"
    if not local_path(data).exists():
        raise UserError(f"{key} = {data}", rule="does not exist",
                        fix="name a file or a folder, or leave it out to read the Hub")  # fmt: skip
    table = open_table(data, key=key, columns_fix=_columns_fix(task))
    kinds = {name.endswith(".parquet") for name in table.files}
    if len(kinds) > 1:
        raise UserError(f"{key} = {data}", rule=f"contains files of more than one kind ({', '.join(ENDINGS)})",
                        fix="keep either parquet or JSON")  # fmt: skip
    return table


def _table(task: str, files: Iterable[Path]) -> Table:
    return Table(files=tuple(map(str, files)), revision=None, columns_fix=_columns_fix(task))


def _columns_fix(task: str) -> str:
    columns = _of_family(_COLUMNS, task)
    return f"the Hub's columns for {task} are {', '.join(columns)}" if columns else "use the Hub's columns"


def _of_family(entries: Mapping[str, T], task: str) -> T | None:
    """The entry of the longest name that ``task`` equals or begins with: cruxeval for cruxeval_output."""
    names = [name for name in entries if task == name or task.startswith(f"{name}_")]
    return entries[max(names, key=len)] if names else None
