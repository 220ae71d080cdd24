"""A small published run for tests of the report."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.cards import model_card
from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.artifacts.manifest import Manifest, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.generation import SamplingConfig, SamplingParams
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.problems import BenchmarkConfig, BenchmarkSetConfig, ProblemsConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import OptimizerConfig, TrainingConfig
from megatron_ssd.schema import Sample, Verdict
from tests.helpers.sweep_summary import cells_of, sweep_summary

REVISION = "6f1d0c9a44be0d27" * 4  # has the length of a model folder's hash
VLLM = {"name": "vllm", "version": "0.32.0"}
MEGATRON = {"name": "megatron-core", "version": "0.16.1"}
DIFFICULTIES = ("easy", "medium", "hard")
TEMPERATURES, TOP_PS = (0.8, 1.0, 1.2, 1.5, 1.8), (0.5, 0.6, 0.8, 1.0)
# A program with markup, which the page must escape.
HOSTILE = "def f(xs):\n    # </pre><script>alert(1)</script> <img src='http://example.com/x.png'>\n    return xs"
NO_ERRATA: dict[str, Any] = {"flaws": {}, "num_problems": 300, "kept": True}
_BEST = {"base": "T1.8-k20-p0.5", "ssd": "T1.5-k20-p0.6"}


def run_config(run_dir: Path, *, benchmark: str = "minicode") -> RunConfig:
    """The configuration of the run that ``build_run`` publishes."""
    real = benchmark != "minicode"
    return RunConfig(
        run_dir=str(run_dir),
        model=ModelConfig(
            name="tiny", model_type="qwen3", hidden_size=192, num_hidden_layers=4, num_attention_heads=6,
            num_key_value_heads=2, head_dim=32, intermediate_size=512, vocab_size=512, max_position_embeddings=2048,
            tie_word_embeddings=True, path=str(run_dir.parent / "base" / "export"),
        ),
        problems=ProblemsConfig(name="rstar_coder", path="rows") if real else ProblemsConfig(name="minicode"),
        benchmark=BenchmarkConfig(sets={benchmark: BenchmarkSetConfig(
            format="livecodebench" if real else "minicode", path="rows" if real else None)}),
        sampling=SamplingConfig(train=SamplingParams(temperature=1.5, top_k=20, top_p=0.6),
                                eval=SamplingParams(temperature=1.5, top_k=20, top_p=0.8), max_tokens=96),
        precision=PrecisionConfig(params_dtype="fp32", transformer_engine=False),
        cluster=ClusterConfig(device="cpu"),
        optimizer=OptimizerConfig(lr=3e-4, min_lr=3e-5, lr_warmup_iters=20),
        training=TrainingConfig(train_iters=200, global_batch_size=32, seq_length=128, packing="greedy",
                                batch_unit="packed_sequences"),
    )  # fmt: skip


def build_run(run_dir: Path, *, scale: float = 1.0, benchmarks: Sequence[str] = ("minicode",)) -> None:
    """Publish every stage from problems to eval, with the same results on each of ``benchmarks``.

    ``scale`` multiplies every score; 0 is a model that solves nothing.
    """
    hashes = {f"benchmark {name}": "b" * 64 for name in benchmarks}
    base = _publish_base(run_dir.parent / "base")
    problems = _publish(run_dir, "problems", {"source": "a" * 64, **hashes}, seconds=0.4,
                        fill=_write_hits, dropped={"duplicate": 1200, "contaminated": 30, "no_text": 0},
                        counts={"rows": 1831, "problems": 600, "contaminated_and_kept": 1},
                        facts={"selection": "minicode aaaaaaaaaaaa: 600 of 1831 rows, selection 0123456789abcdef",
                               "evaluation_sets": ["humaneval", "minicode"]})  # fmt: skip
    samples = _publish_samples(run_dir, base.content_hash, problems.content_hash)
    dataset = _publish(run_dir, "dataset", {"samples": samples.content_hash}, engine=MEGATRON, seconds=2.4,
                       counts={"documents": 486}, dropped={"skipped": 6, "empty": 41, "one_line_stub": 67})  # fmt: skip
    checkpoints = _publish_checkpoints(run_dir, base.content_hash, dataset.content_hash)
    export = _publish(
        run_dir, "export", {"checkpoints": checkpoints.content_hash, "assets": "e" * 64}, engine=MEGATRON, seconds=6.1,
        fill=lambda work: _write_export(work, run_config(run_dir)), facts={"iteration": 200},
    )  # fmt: skip
    evaluated = {"model": base.content_hash, "export": export.content_hash, **hashes}
    _publish_eval(run_dir, evaluated, scale, benchmarks)
    _publish(run_dir, "general_benchmarks", {"model": base.content_hash, "export": export.content_hash}, seconds=71.0,
             fill=_write_benchmarks, counts={"tasks": 2, "rows": 14206})  # fmt: skip


def change_summary(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the evaluation results of ``run_dir`` on its first benchmark. This breaks the lineage of the run."""
    path = benchmark_folder(run_dir) / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The published ``report/summary.json``."""
    return json.loads((run_dir / "report" / "summary.json").read_text())  # type: ignore[no-any-return]


def benchmark_folder(run_dir: Path) -> Path:
    """The folder of the run's first benchmark."""
    folder = run_dir / "eval"
    return folder / str(next(iter(read_manifest(folder).facts["benchmarks"])))


def read_scores(run_dir: Path) -> dict[str, Any]:
    """The part of ``report/summary.json`` on the run's first benchmark."""
    return dict(next(iter(read_summary(run_dir)["benchmarks"].values())))


def read_page(run_dir: Path) -> str:
    """The published ``report/report.html``."""
    return (run_dir / "report" / "report.html").read_text()


def _publish(
    run_dir: Path, name: str, inputs: dict[str, str], *, seconds: float, fill: Any = None, **facts: Any
) -> Manifest:
    stage = Stage(name=name, run_dir=run_dir, config={"made_for": "tests"}, inputs=inputs)
    work = stage.begin()
    stage._seconds_before = seconds
    (work / "data.bin").write_bytes(f"{name} of {run_dir.name}".encode())
    if fill is not None:
        fill(work)
    return stage.publish(**facts)


def _write_hits(work: Path) -> None:
    with JsonlWriter(work / "contamination.jsonl") as rows:
        for number in range(31):
            last = number == 30
            rows.write({"problem_id": f"seed_{number}", "set_name": "humaneval", "overlap": 0.6 if last else 1.0,
                        "evaluation_id": f"<b>HumanEval/{number}", "exact": number < 2, "kept": last})  # fmt: skip


def _write_benchmarks(work: Path) -> None:
    common = {"filter": "none", "confidence": 0.95}
    rows = [
        {"task": "humaneval", "metric": "pass@1", "num_fewshot": 0, "rows_on_hub": 164,
         "base": {"value": 0.75, "stderr": 0.0339, "rows": 164},
         "ssd": {"value": 0.7439, "stderr": 0.0342, "rows": 164},
         "difference": {"value": -0.0061, "low": -0.0427, "high": 0.0305}, **common},
        {"task": "mmlu", "metric": "acc", "num_fewshot": 5, "rows_on_hub": 14042,
         "base": {"value": 0.3333, "stderr": None, "rows": 6}, "ssd": {"value": 0.3333, "stderr": None, "rows": 6},
         "difference": {"value": 0.0, "low": 0.0, "high": 0.0}, **common},
    ]  # fmt: skip
    (work / "summary.json").write_text(json.dumps({"confidence": 0.95, "chat_template": False, "results": rows}))


def _write_export(work: Path, config: RunConfig) -> None:
    (work / "config.json").write_text(json.dumps({"vocab_size": 512, "eos_token_id": 2}))
    (work / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5], "temperature": 1.5}))
    base = Path(config.run_dir).parent / "base"
    (work / "README.md").write_text(model_card(config, base, exported={"iteration": 200}))


def _publish_base(folder: Path) -> Manifest:
    corpus = _publish(folder, "dataset", {}, engine=MEGATRON, seconds=21.0, counts={"documents": 100_000})
    weights = _publish(folder, "checkpoints", {"dataset": corpus.content_hash}, engine=MEGATRON, seconds=301.0)
    return _publish(folder, "export", {"checkpoints": weights.content_hash}, engine=MEGATRON, seconds=5.2)


def _publish_samples(run_dir: Path, base_hash: str, problems_hash: str) -> Manifest:
    def fill(work: Path) -> None:
        rng = random.Random(1)
        for shard in range(2):
            with JsonlWriter(work / f"shard-{shard:05d}.jsonl") as rows:
                for index in range(300):
                    finish = "skipped" if index % 97 == 96 else "length" if index % 23 == 22 else "stop"
                    length = 96 if finish == "length" else 0 if finish == "skipped" else round(rng.gauss(44, 12)) % 95
                    rows.write(sample_of(f"train-{shard}-{index}", 0, "return xs", finish, length).to_json())

    inputs = {"model": base_hash, "problems": problems_hash, "template": "d" * 64}
    return _publish(run_dir, "samples", inputs, fill=fill, engine=VLLM, seconds=38.7, counts={"samples": 600},
                    facts={"tokens_per_second": 4712.3})  # fmt: skip


def _publish_checkpoints(run_dir: Path, base_hash: str, dataset_hash: str) -> Manifest:
    def fill(work: Path) -> None:
        rng = random.Random(2)
        with JsonlWriter(work / "metrics.jsonl") as rows:
            for iteration in range(1, 201):
                rows.write(
                    {
                        "iteration": iteration,
                        "loss": 0.35 + 0.4 * 0.98**iteration + rng.gauss(0, 0.008),
                        "learning_rate": 3e-4 * min(1.0, iteration / 20) * (1 - 0.9 * max(0, iteration - 20) / 180),
                        "grad_norm": 0.4 + 1.6 * 0.95**iteration + abs(rng.gauss(0, 0.05)),
                        "tokens_per_second": 7400 + rng.gauss(0, 250),
                    }
                )

    inputs = {"model": base_hash, "dataset": dataset_hash}
    return _publish(run_dir, "checkpoints", inputs, fill=fill, engine=MEGATRON, seconds=96.0,
                    counts={"iterations": 200}, facts={"epochs": 1.07, "parallel": {"world_size": 2}})  # fmt: skip


def _publish_eval(run_dir: Path, inputs: dict[str, str], scale: float, benchmarks: Sequence[str]) -> None:
    def fill_benchmark(work: Path) -> None:
        work.mkdir()
        (work / "summary.json").write_text(json.dumps(_summary(work.name, scale)))
        for model, label in _BEST.items():
            with (
                JsonlWriter(work / "generations" / model / f"{label}.jsonl") as generations,
                JsonlWriter(work / "verdicts" / model / f"{label}.jsonl") as verdicts,
            ):
                for problem_id in _summary(work.name, scale)["difficulties"]:
                    code = HOSTILE if model == "base" else "def f(xs):\n    return [x * 2 for x in xs if x > 3]"
                    generations.write(sample_of(problem_id, 0, code, "stop", 20).to_json())
                    verdicts.write(_verdict(problem_id, passed=model == "ssd" and scale > 0).to_json())

    def fill(work: Path) -> None:
        for name in benchmarks:
            fill_benchmark(work / name)

    described = {name: {"format": name, "problems": 300, "dates": None} for name in benchmarks}
    _publish(run_dir, "eval", inputs, fill=fill, engine=VLLM, seconds=262.0,
             counts={"problems": 300, "programs": 123_000},
             facts={"prompt_opens_thinking": False, "benchmarks": described})  # fmt: skip


def sample_of(problem_id: str, index: int, response: str, finish: Any, length: int) -> Sample:
    """A response to a made-up prompt, of ``length`` tokens."""
    return Sample(
        problem_id=problem_id, sample_index=index,
        messages=[{"role": "user", "content": "Write f(xs): keep the numbers above 3, double each, in their order."}],
        prompt_token_ids=[1, 2, 3], response=response if length else "", response_token_ids=list(range(length)),
        finish_reason=finish, seed=7, sampling_hash="c" * 64, model_revision=REVISION,
        skip_reason="prompt longer than the context" if finish == "skipped" else "",
    )  # fmt: skip


def _verdict(problem_id: str, *, passed: bool) -> Verdict:
    if passed:
        return Verdict(problem_id=problem_id, sample_index=0, status="passed", tests_passed=10, tests_total=10)
    return Verdict(problem_id=problem_id, sample_index=0, status="wrong_answer", tests_passed=2, tests_total=10,
                   failed_test=2, detail="expected [8, 10], got [4, 5]")  # fmt: skip


def _summary(benchmark: str, scale: float) -> dict[str, Any]:
    rows = (
        ("base_default", "base at its default decode", "base", "T1-k20-p0.8", 0.276, 0.542),
        ("base_train", "base at the training decode", "base", "T1.5-k20-p0.6", 0.318, 0.644),
        ("base_best", "base at its best", "base", _BEST["base"], 0.335, 0.677),
        ("ssd_best", "SSD at its best", "ssd", _BEST["ssd"], 0.345, 0.680),
    )
    return {
        "benchmark": benchmark,
        "format": benchmark,
        "headline": [_row(*row[:4], row[4] * scale, row[5] * scale, scale) for row in rows],
        **sweep_summary(cells_of(TEMPERATURES, (20,), TOP_PS), best=_BEST, scale=scale,
                        train=SamplingParams(temperature=1.5, top_k=20, top_p=0.6)),
        "claims": [
            {"text": "SSD beats its base when both decode alike.", "status": "shown",
             "evidence": "pass@1 34.5 against 27.6 at T 1.0, top-p 0.8: +6.9 points (4.9 to 8.9)."},
            {"text": "SSD beats the best that decoding alone gets from the base.", "status": "unclear",
             "evidence": "+1.0 points (-0.9 to +2.9)."},
            {"text": "The gain is largest on hard problems.", "status": "not shown",
             "evidence": "easy +1.4, medium +0.9, hard +0.7 points."},
        ],
        "confidence": 0.95,
        "bootstrap_samples": 1000,
        "num_problems": 300,
        "num_samples": 10,
        "engine": VLLM,
        "sandbox": "bubblewrap",
        "prompt_opens_thinking": False,
        "selection_problems": 150,
        "errata": {"flaws": {"abc362_c": "several"}, "num_problems": 300, "kept": True} if scale == 0 else NO_ERRATA,
        "claim_rule": "shown: the interval of the difference lies above zero; unclear: it holds zero.",
        "settings": {
            model: {label: {"outcomes": {"wrong_answer": 1760, "passed": 1000 + 20 * len(model), "no_code": 240},
                            "no_code": 0.08, "no_code_causes": {"no fence": 200, "empty block": 40},
                            "diversity": _diversity(scale), "overall": {}, "by_difficulty": {},
                            "base_tests": None, "finish_reasons": {"stop": 3000},
                            "n": {"problems": 300, "samples": 3000, "left_out": 0}} for label in labels}
            for model, labels in {"base": [row[3] for row in rows[:3]], "ssd": [_BEST["ssd"]]}.items()
        },
        "difficulties": {f"{name}-{index:03d}": name for name in DIFFICULTIES for index in range(3)},
    }  # fmt: skip


def _diversity(scale: float) -> dict[str, Any]:
    solved = round(230 * scale)
    return {"distinct": 7.31, "distinct_passing": 2.64 if solved else None, "num_solved": solved}


def _row(key: str, title: str, model: str, decoding: str, at_1: float, at_5: float, scale: float) -> dict[str, Any]:
    at_10 = at_5 + 0.07 * scale
    ease = dict(zip(DIFFICULTIES, (1.5, 1.0, 0.5), strict=True))
    return {
        "key": key, "title": title, "model": model, "decoding": decoding, "num_problems": 150, "num_samples": 10,
        "overall": {"1": _estimate(at_1, 0.019 * scale), "5": _estimate(at_5, 0.022 * scale),
                    "10": _estimate(at_10, 0.024 * scale)},
        "base_tests": None,
        "by_difficulty": {
            name: {"1": _estimate(at_1 * factor, 0.033 * scale),
                   "5": _estimate(min(at_5 * factor, 0.96), 0.035 * scale),
                   "10": _estimate(min(at_10 * factor, 0.97), 0.035 * scale)}
            for name, factor in ease.items()
        },
        "problems_by_difficulty": dict.fromkeys(DIFFICULTIES, 50),
        "ssd_gain": None if model == "ssd" else {"1": _gain(0.345 * scale - at_1, 0.01 * scale),
                                                 "5": _gain(0.68 * scale - at_5, 0.01 * scale),
                                                 "10": _gain(0.75 * scale - at_10, 0.01 * scale)},
    }  # fmt: skip


def _gain(value: float, error: float) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - 1.96 * error,
        "high": value + 1.96 * error,
        "sign_test": {"ahead": 61, "behind": 40, "tied": 49, "p_value": 0.0460},
    }


def _estimate(value: float, error: float) -> dict[str, float]:
    return {"value": value, "low": max(value - 1.96 * error, 0.0), "high": min(value + 1.96 * error, 1.0)}
