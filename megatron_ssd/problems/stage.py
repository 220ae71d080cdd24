"""The problems stage: selects from the rows of a source the problems to sample, in run_dir/problems.

Output:
- ``problems.jsonl``: the chosen problems, in order;
- ``dropped.jsonl``: every other row, with the reason;
- ``contamination.jsonl``: evaluation problems found in training problems;
- ``manifest.json``: its facts include ``selection``, a line that two people can compare.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import format_counts
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.errors import UserError
from megatron_ssd.problems.decontamination import HITS_FILE, Decontaminator, evaluation_set_hashes
from megatron_ssd.problems.selection import PROBLEMS_FILE, select
from megatron_ssd.problems.source import Source, open_source
from megatron_ssd.progress import progress
from megatron_ssd.schema import Problem

log = logging.getLogger(__name__)

_NOT_CONTENT = ("path", "revision")  # where the rows are; a hash or commit identifies their content


def problems_stage(config: RunConfig) -> Stage:
    """The stage's identity: the same rows, selection and evaluation sets mean the same problems.

    Raises:
        UserError: no source is named, or a file does not exist.
    """
    return _stage(config, open_source(needed(config.problems, "problems"), config.minicode))


def run_problems(config: RunConfig) -> None:
    """Select the problems to sample.

    Raises:
        UserError: a row or an evaluation set cannot be read, no problem is left, or too many are contaminated.
    """
    source = open_source(needed(config.problems, "problems"), config.minicode)
    stage = _stage(config, source)
    if stage.is_current():
        return
    work = stage.begin()
    decontaminator = Decontaminator(config.contamination, config.benchmark, config.minicode)
    if not decontaminator.sets:
        log.warning("problems: compared with no evaluation set; name a benchmark, or contamination.sets")
    rows = progress(source.read(), desc="selecting problems", unit="row")
    selection = select(rows, source.section, seed=config.seed, is_contaminated=decontaminator.drops, folder=work)
    if not selection.ids:
        raise UserError(
            f"problems.path = {source.section.path}",
            rule=f"none of its {selection.rows} rows is left (dropped {format_counts(selection.dropped)})",
            fix="name a data set that contains problems, or relax the problems section",
        )
    hits = decontaminator.report(work, kept=selection.ids)
    # The line that two people compare.
    line = (
        f"{source.section.name} {source.revision[:12]}: {len(selection.ids)} of {selection.rows} rows, "
        f"selection {selection.digest[:16]}"
    )
    log.info("problems: %s; dropped %s", line, format_counts(selection.dropped))
    if config.contamination.on_hit == "drop":
        log.info("problems: dropped %d that are in evaluation sets (contamination.on_hit=drop; %s)",
                 selection.dropped.get("contaminated", 0), HITS_FILE)  # fmt: skip
    if hits:
        log.warning("problems: %d of them are in evaluation sets (contamination.jsonl)", hits)
    stage.publish(
        counts={"rows": selection.rows, "problems": len(selection.ids), "contaminated_and_kept": hits},
        dropped=selection.dropped,
        facts={"selection": line, "evaluation_sets": decontaminator.sets},
    )


def read_problems(run_dir: Path) -> Iterator[Problem]:
    """The published problems of a run, in order. Raises ``UserError`` if the stage has not run."""
    return (Problem.from_json(row) for row in iter_jsonl(run_dir / "problems" / PROBLEMS_FILE))


def _stage(config: RunConfig, source: Source) -> Stage:
    section = {key: value for key, value in dataclasses.asdict(source.section).items() if key not in _NOT_CONTENT}
    contamination = dataclasses.asdict(config.contamination)
    for one in contamination["sets"].values():
        del one["path"]
    settings = {"problems": section, "seed": config.seed, "contamination": contamination}
    # The inputs' hashes depend on the world as well, but do not show which key has changed.
    world = config.minicode.of_problems("train") if source.section.name == "minicode" else {}
    if config.benchmark and any(one.format == "minicode" for one in config.benchmark.sets.values()):
        world |= config.minicode.of_problems("test")
    settings["minicode"] = world
    others = dataclasses.asdict(config.minicode).keys() - world.keys()
    return Stage(
        name="problems",
        run_dir=Path(config.run_dir),
        config=settings,
        inputs={
            "source": source.revision,
            **evaluation_set_hashes(config.contamination, config.benchmark, config.minicode),
        },
        unused={f"minicode.{key}" for key in others},
        replace=config.replace,
        restarts=True,  # it takes minutes at most, and after an error the same folder should be usable
    )
