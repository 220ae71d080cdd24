"""Writes the training prompts, validation problems and test problems of the experiment on real models.

Input is a folder of public data: ``mbpp/mbpp.jsonl``, ``rllm_code/test_leetcode.json``, ``rstar_coder_seed_sft``,
``lcb_schema/codeforces_408.jsonl`` and ``evalplus``. Output:

- ``train/short/mbpp.jsonl`` (tasks 601 to 974), ``train/short/leetcode.jsonl``, ``train/contests.jsonl``: prompts with
  the columns id, statement, starter_code, and no solution;
- ``validation.jsonl``: MBPP's tasks 511 to 600, on which the learning rate is chosen;
- ``test/humaneval_plus.jsonl``, ``test/mbpp_plus.jsonl`` (tasks 11 to 510), ``test/codeforces.jsonl``;
- ``ground/mbpp_plus.jsonl``: all of MBPP+, for the comparison of the base with published scores.

The Codeforces problems are held out of the contests. ``choose_heldout`` chose them once; their ids are in
``real_coder_heldout.json``. Texts that occur twice are kept once, and prompts that share text with a validation or test
problem are dropped.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.config.problems import (
    BenchmarkConfig,
    BenchmarkSetConfig,
    ContaminationConfig,
    EvaluationSetConfig,
    MinicodeConfig,
)
from megatron_ssd.errors import UserError
from megatron_ssd.problems.decontamination import Decontaminator
from megatron_ssd.problems.table import open_table
from megatron_ssd.schema import Problem

Record = dict[str, Any]

HELDOUT = Path(__file__).with_name("real_coder_heldout.json")
SEED, PER_DIFFICULTY = 0, 40
EXPECTED = {  # of the public data
    "train/short/mbpp": 374, "train/short/leetcode": 200, "train/contests": 638, "validation": 90,
    "test/humaneval_plus": 164, "test/mbpp_plus": 224, "test/codeforces": 120, "ground/mbpp_plus": 378,
}  # fmt: skip
_INSTRUCTION = "Please solve the programming task below using a self-contained code snippet in a markdown code block."
_REQUEST = "Please complete the following python code precisely:"


def prepare(
    data: Path, out: Path, *, heldout: Path = HELDOUT, expected: Mapping[str, int] = EXPECTED
) -> dict[str, Counter[str]]:
    """Write all files.

    Args:
        data: the folder of public data.
        out: the folder to write.
        heldout: the file with the ids of the Codeforces problems that are not trained on.
        expected: file without ending -> rows that it must have before prompts are dropped.

    Returns:
        File without ending -> what became of its rows: ``kept``, ``duplicate``, ``contaminated``.

    Raises:
        UserError: a file cannot be read, lacks a held-out problem, or has another number of rows.
    """
    mbpp, codeforces = _read(data / "mbpp/mbpp.jsonl"), _read(data / "lcb_schema/codeforces_408.jsonl")
    plus = _read(data / "evalplus/MbppPlus.jsonl.gz")
    ids = set(json.loads(heldout.read_text(encoding="utf-8"))["ids"])
    tests = [row for row in codeforces if row["question_id"] in ids]
    held_texts = {_normal(row["question_content"]) for row in tests}
    files: dict[str, list[Record]] = {
        "validation": [row for row in mbpp if 511 <= row["task_id"] <= 600],
        "test/humaneval_plus": _read(data / "evalplus/HumanEvalPlus.jsonl.gz"),
        "test/mbpp_plus": [row for row in plus if 11 <= int(row["task_id"].rpartition("/")[2]) <= 510],
        "test/codeforces": tests,
        "ground/mbpp_plus": plus,
    }
    prompts = {
        "train/short/mbpp": [_mbpp_prompt(row) for row in mbpp if 601 <= row["task_id"] <= 974],
        "train/short/leetcode": [
            _leetcode_prompt(row, number) for number, row in enumerate(_read(data / "rllm_code/test_leetcode.json"))
        ],
        "train/contests": list(_contest_prompts(_read(data / "rstar_coder_seed_sft"), held_texts)),
    }
    for name, rows in {**files, **prompts}.items():
        if len(rows) != expected[name]:
            raise UserError(f"{name}: {len(rows)} rows", rule=f"{expected[name]} are expected",
                            fix=f"check the files in {data}")  # fmt: skip
    for name, rows in files.items():
        _write(out / f"{name}.jsonl", rows)
    found = {name: Counter(kept=len(rows)) for name, rows in files.items()}
    return found | _write_prompts(out, prompts)


def choose_heldout(rows: Iterable[Record], *, seed: int, per_difficulty: int) -> list[str]:
    """Sorted ids of ``per_difficulty`` problems of each difficulty, in the order of a hash of ``seed`` and id."""
    by_difficulty: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_difficulty[row["difficulty"]].append(row["question_id"])
    return sorted(
        id_
        for ids in by_difficulty.values()
        for id_ in sorted(ids, key=lambda one: hashlib.sha256(f"{seed}:{one}".encode()).digest())[:per_difficulty]
    )


def benchmark_sets(out: Path) -> dict[str, BenchmarkSetConfig]:
    """The test sets in a folder that ``prepare`` wrote."""
    formats = {"humaneval_plus": "humaneval_plus", "mbpp_plus": "mbpp_plus", "codeforces": "livecodebench"}
    return {
        name: BenchmarkSetConfig(format=format_, path=str(out / f"test/{name}.jsonl"))  # type: ignore[arg-type]
        for name, format_ in formats.items()
    }


def _write_prompts(out: Path, prompts: Mapping[str, Sequence[Record]]) -> dict[str, Counter[str]]:
    """Write the prompts that are neither repeated nor in an evaluation set; returns what became of all."""
    validation = EvaluationSetConfig(path=str(out / "validation.jsonl"), columns=("text",), id="task_id")
    section = ContaminationConfig(sets={"validation": validation}, on_hit="drop")
    decontaminator = Decontaminator(section, BenchmarkConfig(sets=benchmark_sets(out)), MinicodeConfig())
    seen: set[str] = set()
    found: dict[str, Counter[str]] = {}
    for name, rows in prompts.items():
        kept, found[name] = [], Counter[str]()
        for row in rows:
            outcome = "kept"
            if _normal(row["statement"]) in seen:
                outcome = "duplicate"
            elif _is_contaminated(row, decontaminator):
                outcome = "contaminated"
            seen.add(_normal(row["statement"]))
            found[name][outcome] += 1
            if outcome == "kept":
                kept.append(row)
        _write(out / f"{name}.jsonl", kept)
    return found


def _is_contaminated(row: Record, decontaminator: Decontaminator) -> bool:
    """Whether an evaluation problem is found in a prompt.

    The starter code is also left out, since an argument that is called ``a`` hides that word of the statement.
    """
    texts = (row, {**row, "starter_code": ""})
    return any(decontaminator.drops(Problem(source="rows", form="function", **text)) for text in texts)


def _mbpp_prompt(row: Record) -> Record:
    assertion = row["test_list"][0]
    called = [node.id for node in ast.walk(ast.parse(assertion)) if isinstance(node, ast.Name)]
    defined = {node.name: node for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)}
    name = next((name for name in called if name in defined), None)
    if name is None:
        raise UserError(f"MBPP task {row['task_id']}", rule="its first assertion calls no function of its code",
                        fix="restore the file")  # fmt: skip
    return {
        "id": f"mbpp-{row['task_id']}",
        "statement": f"{row['text'].strip()}\n\n{assertion.strip()}",
        "starter_code": f"def {name}({ast.unparse(defined[name].args)}):",
    }


def _leetcode_prompt(row: Record, number: int) -> Record:
    text, _, code = row["problem"].partition(_REQUEST)
    method = re.search(r"Solution\(\)\.(\w+)", row["tests"]["functional"])
    signature = re.search(rf"def {method[1]}\(.*?\)[^\n]*:", code, re.DOTALL) if method else None
    if signature is None:
        raise UserError(f"LeetCode row {number}", rule="shows no signature of the method that its tests call",
                        fix="restore the file")  # fmt: skip
    return {
        "id": f"leetcode-{number}",
        "statement": text.removeprefix(_INSTRUCTION).strip(),
        "starter_code": f"class Solution:\n    {signature[0]}",
    }


def _contest_prompts(rows: Iterable[Record], held_texts: set[str]) -> Iterator[Record]:
    """Each text once, in the copy whose white space was changed least."""
    copies: defaultdict[str, list[Record]] = defaultdict(list)
    for row in rows:
        copies[_normal(row["question"])].append(row)
    for text, same in copies.items():
        if text not in held_texts:
            row = min(same, key=lambda one: (one["question"].count("  "), -one["question"].count("\n")))
            starter = (row["starter_code"] or "").strip()
            yield {"id": row["question_id"], "statement": row["question"].strip(), "starter_code": starter}


def _normal(text: str) -> str:
    return " ".join(text.split())


def _read(path: Path) -> list[Record]:
    return [row.values for row in open_table(str(path), key="--data", columns_fix="restore the file").rows(None)]


def _write(path: Path, rows: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
