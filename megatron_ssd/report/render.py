"""Writes the report of a run: ``report/summary.json``, ``report.html`` and ``problems.html``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.samples import iter_samples, sample_shards
from megatron_ssd.config.run import RunConfig
from megatron_ssd.report.attempts import read_problem_pages
from megatron_ssd.report.benchmarks import read_benchmarks
from megatron_ssd.report.data import gather
from megatron_ssd.report.lineage import trace
from megatron_ssd.report.page import render
from megatron_ssd.report.problems_page import render_problems
from megatron_ssd.report.stage import print_report, report_stage
from megatron_ssd.report.summary import summarise


def run_report(config: RunConfig) -> None:
    """Publish the report unless it is up to date, and print its headline table.

    Raises:
        UserError: a stage before it was not published, or one of its files cannot be read.
    """
    run_dir = Path(config.run_dir)
    stage = report_stage(config)
    if not stage.is_current():
        data = gather(config)
        base_model = Path(config.model.path) if config.model is not None and config.model.path is not None else None
        lineage = trace(run_dir, base_model=base_model, base_revision=_base_revision(run_dir))
        evaluation = data.manifests["eval"]
        pages = read_problem_pages(
            run_dir / "eval", data.scores, prompt_opens_thinking=evaluation.facts["prompt_opens_thinking"]
        )
        problems_page = render_problems(
            pages, run_name=data.run_name, code_version=evaluation.code_version, page_mib=config.report.page_mib
        )
        benchmarks = read_benchmarks(run_dir)
        work = stage.begin()
        shown = {**summarise(data, lineage), "benchmarks": [dataclasses.asdict(row) for row in benchmarks]}
        summary = json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(work / "summary.json", summary + "\n")
        write_atomically(work / "report.html", render(data, lineage, benchmarks))
        write_atomically(work / "problems.html", problems_page)
        stage.publish(counts={"examples": len(data.examples), "claims": len(data.scores.claims)})
    print_report(run_dir)


def _base_revision(run_dir: Path) -> str:
    """The name of the model that was sampled from, as the samples give it."""
    for shard in sample_shards(run_dir):
        for sample in iter_samples(shard):
            return sample.model_revision
    return "not named: the run has no samples"
