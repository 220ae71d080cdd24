"""The first stage: rows of a source to run_dir/problems, the problems that are sampled.

Output:
- ``problems.jsonl``: the chosen problems, in order;
- ``dropped.jsonl``: every other row, with the reason;
- ``contamination.jsonl``: evaluation problems found in training problems;
- ``manifest.json``: among its facts a line that two people can compare, ``selection``.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import in_words
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems.decontamination import HITS_FILE, Decontaminator, evaluation_set_hashes
from megatron_ssd.problems.selection import PROBLEMS_FILE, Selection, select
from megatron_ssd.problems.source import Source, open_source
from megatron_ssd.progress import progress
from megatron_ssd.schema import Problem

log = logging.getLogger(__name__)

_NOT_CONTENT = ("path", "revision")  # where the rows are; their hash or commit says what they are


def problems_stage(config: RunConfig) -> Stage:
    """The stage as ``config`` identifies it: same rows, choice and evaluation sets mean the same problems.

    Raises:
        UserError: no source is named, or a file is not there.
    """
    return _stage(config, open_source(config))


def run_problems(config: RunConfig) -> None:
    """Choose the problems to sample.

    Raises:
        UserError: a row or an evaluation set cannot be read, nothing is left, or the contamination gate refuses.
    """
    source = open_source(config)
    stage = _stage(config, source)
    if stage.is_current():
        return
    work = stage.begin()
    gate = Decontaminator(config)
    if not gate.sets:
        log.warning("problems: held against no evaluation set; name a benchmark, or contamination.sets")
    rows = progress(source.candidates(), desc="choosing problems", unit="row")
    selection = select(rows, source.section, seed=config.seed, is_contaminated=gate.drops, folder=work)
    if not selection.ids:
        raise UserError(
            f"problems.path = {source.section.path}",
            rule=f"none of its {selection.rows} rows is left (dropped {in_words(selection.dropped)})",
            fix="name a data set that holds problems, or relax the problems section",
        )
    hits = gate.report(work, kept=selection.ids)
    line = _line(source, selection)
    log.info("problems: %s; dropped %s", line, in_words(selection.dropped))
    if config.contamination.on_hit == "drop":
        log.info("problems: the gate against evaluation sets dropped %d (contamination.on_hit=drop; %s)",
                 selection.dropped.get("contaminated", 0), HITS_FILE)  # fmt: skip
    if hits:
        log.warning("problems: %d of them stand in evaluation sets (contamination.jsonl)", hits)
    stage.publish(
        counts={"rows": selection.rows, "problems": len(selection.ids), "contaminated_and_kept": hits},
        dropped=selection.dropped,
        facts={"selection": line, "evaluation_sets": gate.sets},
    )


def read_problems(run_dir: Path) -> Iterator[Problem]:
    """The published problems of a run, in order. Raises ``UserError`` where the stage was not run."""
    return (Problem.from_json(row) for row in iter_jsonl(run_dir / "problems" / PROBLEMS_FILE))


def _line(source: Source, selection: Selection) -> str:
    """What two people compare."""
    return (
        f"{source.section.name} {source.revision[:12]}: {len(selection.ids)} of {selection.rows} rows, "
        f"selection {selection.digest[:16]}"
    )


def _stage(config: RunConfig, source: Source) -> Stage:
    section = {key: value for key, value in dataclasses.asdict(source.section).items() if key not in _NOT_CONTENT}
    contamination = dataclasses.asdict(config.contamination)
    for one in contamination["sets"].values():
        del one["path"]
    settings = {"problems": section, "seed": config.seed, "contamination": contamination}
    if "minicode" in (source.section.name, config.benchmark and config.benchmark.name):
        # In the inputs' hashes too, which cannot tell which key has changed.
        settings["minicode"] = dataclasses.asdict(config.minicode)
    return Stage(
        name="problems",
        run_dir=Path(config.run_dir),
        config=settings,
        inputs={"source": source.revision, **evaluation_set_hashes(config)},
        replace=config.replace,
        restarts=True,  # minutes at most, and a fix that an error names should work in the same folder
    )
