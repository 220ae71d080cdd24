"""Measures the problems stage on an artificial data set of 600,000 rows.

    python -m benchmarks.problems [--rows 600000] [--folder DIR]

The rows have rStar-Coder's columns, in parquet files of 50,000 rows. Statements have about 1.5 KB. One row in ten
repeats an earlier one with changed white space, one in fifty repeats one with two changed sentences. The evaluation set
has 1,500 problems, 100 of which are in the training rows. Each row of the table is a run of the complete stage, with
hashing and publishing, in its own process. Peak memory is the kernel's count (VmHWM) minus the memory of the process
after all imports. ``texts`` is the size of all statements in UTF-8, the memory that they would need at once. Core
seconds depend less than seconds on other work on the machine; rows/s is computed from seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

MB = 1_000_000
_FILE_ROWS = 50_000
_EVALUATION_PROBLEMS, _PLANTED = 1_500, 100
_SENTENCES, _SENTENCES_PER_TEXT = 200_000, 22
_CHILD = """
import json, logging, sys, time
import datasketch, pyarrow.parquet
from megatron_ssd.config.build import build
from megatron_ssd.config.run import RunConfig
from megatron_ssd.problems.stage import run_problems

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))

config = build(RunConfig, json.loads(sys.argv[1]))
base = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # from here on VmHWM is the peak of the stage
started, cpu = time.perf_counter(), time.process_time()
run_problems(config)
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({"seconds": seconds, "cpu": cpu, "memory": status("VmHWM") - base}))
"""


@dataclass(frozen=True, kw_only=True)
class Data:
    """An artificial data set. ``text_bytes`` is the size of its statements."""

    folder: Path
    rows: int
    text_bytes: int


class Texts:
    """Makes statements from a pool of sentences. The evaluation set has its own pool."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        letters = "etaoinshrdlucmfwyp"
        words = ["".join(self._random.choices(letters, k=self._random.randint(2, 10))) for _ in range(20_000)]
        self._pool = [
            " ".join(self._random.choices(words, k=self._random.randint(7, 13))).capitalize() + "."
            for _ in range(_SENTENCES)
        ]

    def new(self) -> list[str]:
        """The sentences of a statement."""
        return self._random.choices(self._pool, k=_SENTENCES_PER_TEXT)

    def like(self, sentences: list[str]) -> list[str]:
        """A near duplicate."""
        changed = list(sentences)
        for index in self._random.sample(range(len(changed)), 2):
            changed[index] = self._random.choice(self._pool)
        return changed


def write_rows(folder: Path, rows: int, planted: list[str]) -> Data:
    """Write ``rows`` training rows, with the evaluation problems ``planted`` among them, to parquet files."""
    folder.mkdir()
    texts, chooser, text_bytes = Texts(0), random.Random(1), 0
    earlier: list[list[str]] = []  # some of the statements, to repeat
    plant_at = dict(zip(chooser.sample(range(rows), len(planted)), planted, strict=True))
    for start in range(0, rows, _FILE_ROWS):
        questions = []
        for row in range(start, min(start + _FILE_ROWS, rows)):
            draw = chooser.random()
            sentences = chooser.choice(earlier) if earlier and draw < 0.12 else texts.new()
            if draw >= 0.98 and len(earlier) < 10_000:
                earlier.append(sentences)
            question = "\n\n ".join(sentences) if draw < 0.1 else " ".join(
                texts.like(sentences) if draw < 0.12 else sentences
            )  # fmt: skip
            questions.append(plant_at.get(row, question))
        text_bytes += sum(map(len, questions))
        table = {
            "question_id": [f"seed_{start + number}" for number in range(len(questions))],
            "question": questions,
            "starter_code": [None] * len(questions),
            "is_passed": [True] * len(questions),
        }
        schema = pyarrow.schema({"question_id": "string", "question": "string", "starter_code": "string",
                                 "is_passed": pyarrow.bool_()})  # fmt: skip
        pyarrow.parquet.write_table(
            pyarrow.table(table, schema=schema), folder / f"data-{start // _FILE_ROWS:05}.parquet"
        )
    return Data(folder=folder, rows=rows, text_bytes=text_bytes)


def measure(data: Data, run_dir: Path, **sections: Any) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of one run of the stage in a fresh process."""
    problems = {"name": "rstar_coder", "path": str(data.folder), **sections.pop("problems", {})}
    values = {"run_dir": str(run_dir), "problems": problems, **sections}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(values)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; three times the texts are needed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        texts = Texts(2)
        evaluation = [" ".join(texts.new()) for _ in range(_EVALUATION_PROBLEMS)]
        evaluation_file = folder / "evaluation.jsonl"
        evaluation_file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in evaluation))
        contamination = {"sets": {"made_up": {"path": str(evaluation_file), "columns": ["prompt"]}}, "on_hit": "drop"}
        data = write_rows(folder / "rows", options.rows, evaluation[:_PLANTED])
        lines: list[tuple[str, dict[str, Any]]] = [
            ("exact duplicates", {}),
            ("and decontamination", {"contamination": contamination}),
            ("and shuffled order", {"contamination": contamination, "problems": {"order": "shuffled"}}),
            ("exact and near duplicates", {"problems": {"near_duplicates": 0.8}}),
        ]
        print(
            "| what | rows | texts | seconds | core seconds | rows/s | peak memory |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
        )
        for number, (what, sections) in enumerate(lines):
            done = measure(data, folder / f"run-{number}", **sections)
            print(
                f"| {what} | {data.rows:,} | {data.text_bytes / MB:,.0f} MB | {done['seconds']:.1f} | "
                f"{done['cpu']:.1f} | {data.rows / done['seconds']:,.0f} | {done['memory'] / MB:,.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
