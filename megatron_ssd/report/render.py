"""Writes the report of a run to ``run_dir/report``."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.config.run import RunConfig
from megatron_ssd.report.data import gather
from megatron_ssd.report.page import render
from megatron_ssd.report.problems_page import render_problems
from megatron_ssd.report.stage import print_report, report_stage
from megatron_ssd.report.summary import summarise


def run_report(config: RunConfig) -> None:
    """Publish the report unless it is up to date, and print its headline table.

    Raises:
        UserError: a stage before it was not published, or one of its files cannot be read.
        ConfigError: the list of problems alone takes more than ``report.page_mib``.
    """
    stage = report_stage(config)
    if not stage.is_current():
        data = gather(config)
        problems_page = render_problems(
            data.problem_pages,
            run_name=data.run_name,
            code_version=data.manifests["eval"].code_version,
            page_mib=config.report.page_mib,
        )
        work = stage.begin()
        summary = json.dumps(summarise(data), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(work / "summary.json", summary + "\n")
        write_atomically(work / "report.html", render(data))
        write_atomically(work / "problems.html", problems_page)
        stage.publish(counts={"examples": len(data.problem_pages.examples), "claims": len(data.scores.claims)})
    print_report(Path(config.run_dir))
