"""Keeps the committed results of the experiment on real models, a folder for each finished cell.

``summary.json`` has the cell, the hours that it took, the losses of its training and the summary of each benchmark.
``samples.jsonl.xz`` has all responses, those that were trained on under the benchmark ``train``, and
``verdicts.jsonl.xz`` the outcome of each program.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.real_coder_cells import LEARNING_RATES, Cell
from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.samples import iter_samples, sample_shards
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Verdict

RESULTS = Path(__file__).resolve().parents[1] / "docs/results/real-coder"
_SUMMARY, _SAMPLES, _VERDICTS = "summary.json", "samples.jsonl.xz", "verdicts.jsonl.xz"
_LABELS = ("benchmark", "model", "decoding")


def is_finished(cell: Cell, results: Path) -> bool:
    """Whether the results of ``cell`` are stored."""
    return (results / cell.name / _SUMMARY).is_file()


def store(cell: Cell, run_dir: Path, results: Path, *, core_hours: float) -> None:
    """Store the evaluation in ``run_dir``, in one rename."""
    work = results / f".{cell.name}.partial"
    work.mkdir(parents=True, exist_ok=True)
    benchmarks = {path.parent.name: path for path in sorted(run_dir.glob("eval/*/summary.json"))}
    summary = {
        "cell": cell.name,
        "overrides": [*cell.train, *cell.evaluate],
        "core_hours": round(core_hours, 3),
        "losses": [record["loss"] for record in _metrics(cell, run_dir)],
        "benchmarks": {name: json.loads(path.read_text(encoding="utf-8")) for name, path in benchmarks.items()},
    }
    _write(work / _SAMPLES, [*_trained_on(cell, run_dir), *_labelled(run_dir, "generations", _short)])
    _write(work / _VERDICTS, _labelled(run_dir, "verdicts", lambda record: record))
    (work / _SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    work.rename(results / cell.name)


def read_summary(cell: Cell, results: Path) -> dict[str, Any]:
    """The stored summary of a finished cell."""
    summary: dict[str, Any] = json.loads((results / cell.name / _SUMMARY).read_text(encoding="utf-8"))
    return summary


def read_verdicts(cell: Cell, results: Path) -> Iterator[tuple[tuple[str, str, str], Verdict]]:
    """((benchmark, model, label of the decode setting), verdict) of every program of a finished cell."""
    with lzma.open(results / cell.name / _VERDICTS, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            benchmark, model, decoding = (record.pop(key) for key in _LABELS)
            yield (benchmark, model, decoding), Verdict.from_json(record)


def chosen_learning_rate(results: Path) -> str:
    """The learning rate with the highest pass@1 on the validation problems; of equal ones the smallest.

    Raises:
        UserError: the results of a learning rate are missing.
    """
    passed = {}
    for lr in LEARNING_RATES:
        path = results / f"qwen-lr{lr}" / _SUMMARY
        if not path.is_file():
            raise UserError(f"cell qwen-lr{lr}", rule="has no results, and the learning rate depends on them",
                            fix=f"run it first, with --cell qwen-lr{lr}")  # fmt: skip
        settings = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]["mbpp"]["settings"]["ssd"]
        (setting,) = settings.values()
        passed[lr] = setting["overall"]["1"]["value"]
    return max(LEARNING_RATES, key=lambda lr: passed[lr])


def _metrics(cell: Cell, run_dir: Path) -> Iterator[dict[str, Any]]:
    return iter_jsonl(run_dir / "checkpoints/metrics.jsonl") if cell.training else iter(())


def _trained_on(cell: Cell, run_dir: Path) -> Iterator[dict[str, Any]]:
    for path in sample_shards(run_dir) if cell.training else ():
        for sample in iter_samples(path):
            yield {"benchmark": "train", "model": "base", "decoding": "train", **_short(sample.to_json())}


def _short(sample: dict[str, Any]) -> dict[str, Any]:
    kept = ("problem_id", "sample_index", "finish_reason", "response")
    return {**{key: sample[key] for key in kept}, "tokens": len(sample["response_token_ids"])}


def _labelled(run_dir: Path, folder: str, select: Any) -> Iterator[dict[str, Any]]:
    """The selected fields of every record of an evaluation, behind the names of its folders."""
    for path in sorted(run_dir.glob(f"eval/*/{folder}/*/*.jsonl")):
        labels = dict(zip(_LABELS, (path.parents[2].name, path.parent.name, path.stem), strict=True))
        yield from ({**labels, **select(record)} for record in iter_jsonl(path))


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with lzma.open(path, "wt", preset=9, encoding="utf-8", errors="surrogatepass") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records)
