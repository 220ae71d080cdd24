"""The report stage without its pages, for commands that do not need Altair."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.checkpoints import FOLDER, checkpoint_manifests
from megatron_ssd.evaluation.tables import score_tables
from megatron_ssd.report.data import read_evaluation, read_manifests
from megatron_ssd.report.paper import shown_settings


def report_stage(config: RunConfig) -> Stage:
    """The stage that ``config`` describes, not yet begun.

    Raises:
        UserError: no model is named, or a stage before it was not published.
    """
    if config.model is None:
        raise UserError("model = null", rule="the report shows the settings of the run, so it needs the same overrides",
                        fix="add them, for example experiment=demo")  # fmt: skip
    run_dir = Path(config.run_dir)
    manifests = read_manifests(run_dir)
    return Stage(
        name="report",
        run_dir=run_dir,
        config={**shown_settings(config, manifests), "report.page_mib": config.report.page_mib},
        inputs={
            **{stage: manifest.content_hash for stage, manifest in manifests.items()},
            **{f"{FOLDER} {number}": one.content_hash for number, one in checkpoint_manifests(run_dir).items()},
        },
        replace=config.replace,
    )


def print_report(run_dir: Path) -> None:
    """Print the tables that compare base and SSD, and the path of the page.

    Raises:
        UserError: the report was not published.
    """
    path = run_dir / "report" / "summary.json"
    if not path.is_file():
        raise UserError(f"file {path}", rule="does not exist", fix="run launch/report.py to its end")
    notice = json.loads(path.read_text(encoding="utf-8"))["notice"]
    lines = [notice, ""] if notice else []
    for results in read_evaluation(run_dir):
        lines += [score_tables(results), *results.remarks, ""]
    print("\n".join([*lines, f"report: {run_dir / 'report' / 'report.html'}"]), flush=True)
