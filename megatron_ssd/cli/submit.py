"""Submits a run to SLURM as a chain of jobs, one for each stage, and shows or cancels them.

A stage that is up to date gets no job, so submitting a run again resumes it. A job starts after the jobs of the stages
that it reads have succeeded; if one fails, SLURM cancels those after it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.hub import local_path, locate_model
from megatron_ssd.artifacts.jsonl import JsonlWriter, read_jsonl
from megatron_ssd.artifacts.locks import try_lock
from megatron_ssd.cli.compose import CONFIG_DIR, ConfigSource, base_run, compose_config, compose_values, text_override
from megatron_ssd.cli.entry import config_source, parser, run_command
from megatron_ssd.cli.stages import BASE, LOOP, Script, default_layout, scripts_until
from megatron_ssd.cluster import slurm
from megatron_ssd.cluster.progress import stage_progress
from megatron_ssd.cluster.requeues import FOLDER
from megatron_ssd.config.cluster import IMAGE_OF, ClusterConfig
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError, require
from megatron_ssd.formatting import aligned
from megatron_ssd.planner.gpus import GPUS, Gpu
from megatron_ssd.planner.memory import GB

log = logging.getLogger(__name__)

ROOT = CONFIG_DIR.parent
_JOBS_FILE = "jobs.jsonl"  # in run_dir/slurm: one record per job that was submitted
# Stage -> the stages whose jobs it waits for, besides the one before it. Evaluation and lm-eval can run side by side.
_AFTER = {"general_benchmarks": ("export",), "report": ("eval", "general_benchmarks")}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage of a run, or of its base model, and its configuration."""

    script: Script
    config: RunConfig
    overrides: Sequence[str]
    after: tuple[str, ...]  # names of steps
    of_base: bool = False

    @property
    def name(self) -> str:
        """The stage's name, which differs between a run and its base model."""
        return f"base-{self.script.stage}" if self.of_base else self.script.stage

    @property
    def folder(self) -> Path:
        """Where logs are, and what was submitted."""
        return Path(self.config.run_dir) / FOLDER

    @property
    def is_published(self) -> bool:
        """Whether the stage's folder exists; it may be of another configuration."""
        return (Path(self.config.run_dir) / self.script.stage / "manifest.json").is_file()

    def is_current(self) -> bool:
        """Whether the stage is up to date. A stage without a folder is not opened, which may download a model."""
        return self.is_published and self.script.open_stage(self.config).is_current()


def main() -> None:
    """Entry point of ``launch/submit.py``."""
    options = parser("Submit every stage from problems to report to SLURM; stages that are up to date are skipped.")
    options.add_argument("--until", choices=list(LOOP), default="report", help="last stage to run")
    action = options.add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="print the commands as a shell script, submit nothing")
    action.add_argument("--status", action="store_true", help="show the stages and jobs of the run")
    action.add_argument("--cancel", action="store_true", help="cancel the jobs of the run")
    run_command(options, _run)


def _run(arguments: argparse.Namespace) -> None:
    require(Path.cwd() == ROOT, f"working directory {Path.cwd()}", rule="is not the checkout, in which jobs run",
            fix=f"cd {ROOT}")  # fmt: skip
    steps = plan_steps(arguments.overrides, config_source(arguments), arguments.until)
    if arguments.status:
        print("\n".join(status_lines(steps)))
    elif arguments.cancel:
        _cancel(steps)
    elif arguments.dry_run:
        print("\n".join(shell_script(steps_to_run(steps), source=config_source(arguments))))
    else:
        with _lock(steps):
            _refuse_live_jobs(steps)
            submit_all(steps_to_run(steps), source=config_source(arguments))


def plan_steps(overrides: Sequence[str], source: ConfigSource, until: str) -> list[Step]:
    """Every step of the run, up to date or not, in an order in which each comes after those that it waits for.

    Raises:
        UserError: the configuration cannot be run, or lacks what decides it on the cluster's nodes.
    """
    gpu = _gpu(compose_config(overrides, source).cluster)

    def compose(some: Sequence[str]) -> RunConfig:
        return compose_config(some, source, capability=lambda: gpu.capability if gpu else None)

    config = compose(overrides)
    scripts = scripts_until(config, until)
    trains = any(script.stage == "checkpoints" for script in scripts)
    require(
        not trains or not config.precision.auto or config.cluster.device == "cpu" or gpu is not None,
        "cluster.gpu = null", rule="precision=auto chooses the number format by the GPU",
        fix=f"set cluster.gpu to the nodes' GPU ({', '.join(GPUS)}), or choose precision=bf16",
    )  # fmt: skip
    others = [override for override in overrides if override.lstrip("+").partition("=")[0] != "run_dir"]
    overrides = [*others, text_override("run_dir", config.run_dir)]
    given = compose_values(overrides, source, capability=lambda: None)
    if trains and not given.get("parallel"):
        overrides += _default_layout(config, given, gpu)
    steps: list[Step] = []
    base = config.base if config.model is not None and config.model.path is None and len(scripts) > 1 else None
    if base is not None:
        of_base, base_dir = base_run(base, source)
        before: tuple[str, ...] = ()
        for script in BASE:
            step = Step(script=script, config=compose(of_base), overrides=of_base, after=before, of_base=True)
            # The base model has no cluster of its own: its jobs go to that of the run.
            step = dataclasses.replace(step, config=dataclasses.replace(step.config, cluster=config.cluster))
            steps.append(step)
            before = (step.name,)
        export = (base_dir / "export").absolute()
        overrides = [*overrides, text_override("model.path", str(export))]
        if export.is_dir():  # otherwise no stage after it can be up to date
            config = compose(overrides)
    elif len(scripts) > 1:
        _check_path(config)
        config = compose(overrides)
    last_of_base = tuple(step.name for step in steps[-1:])
    for number, script in enumerate(scripts):
        before = _AFTER.get(script.stage) or tuple(earlier.stage for earlier in scripts[max(0, number - 1) : number])
        names = {earlier.stage for earlier in scripts}
        after = tuple(name for name in before if name in names) + (last_of_base if number == 1 else ())
        steps.append(Step(script=script, config=config, overrides=overrides, after=after))
    return steps


def steps_to_run(steps: Sequence[Step]) -> list[Step]:
    """The steps that are not up to date, and those that wait for one of them."""
    found: dict[str, Step] = {}
    for step in steps:
        if any(name in found for name in step.after) or not step.is_current():
            found[step.name] = step
    return list(found.values())


def job_options(step: Step) -> list[str]:
    """The options of ``sbatch`` for a step, without its dependency."""
    cluster, stage = step.config.cluster, step.script.stage
    options = [f"--job-name=ssd-{step.name}-{Path(step.config.run_dir).name}", "--kill-on-invalid-dep=yes"]
    tasks = num_tasks(step)
    log = f"{step.name}-%j.log" if tasks == 1 else f"{step.name}-%A_%a.log"
    options.append(f"--output={(step.folder / log).absolute()}")
    cpu_partition = cluster.cpu_partition if step.script.gpus == "none" else None
    site = {"partition": cpu_partition or cluster.partition, "account": cluster.account, "qos": cluster.qos}
    options += [f"--{name}={value}" for name, value in site.items() if value is not None]
    if stage in cluster.times:
        options.append(f"--time={cluster.times[stage]}")
    if tasks > 1:
        options.append(f"--array=0-{tasks - 1}")
    nodes, gpus = resources(step)
    options.append(f"--nodes={nodes}")
    if gpus or stage == "checkpoints":  # its job script asks for eight
        options.append(f"--gpus-per-node={gpus}")
    options += cluster.gpu_options if step.script.gpus == "all" else cluster.cpu_options
    return [*options, *cluster.options]


def num_tasks(step: Step) -> int:
    """Tasks of the step's job array; 1 for a single job."""
    cluster, evaluation = step.config.cluster, step.config.evaluation
    eval_nodes = cluster.eval_nodes if evaluation.checkpoints == "last" else 1  # the others are measured one by one
    return {"samples": cluster.samples_nodes, "eval": eval_nodes}.get(step.script.stage, 1)


def resources(step: Step) -> tuple[int, int]:
    """(nodes, GPUs of each) of a job of the step.

    Raises:
        ConfigError: the layout does not fill whole nodes.
    """
    cluster, world_size = step.config.cluster, step.config.parallel.world_size
    per_node = cluster.gpus_per_node if cluster.device == "cuda" else 0
    if step.script.stage != "checkpoints":
        return 1, {"none": 0, "one": min(per_node, 1), "all": per_node}[step.script.gpus]
    if per_node == 0 or world_size <= per_node:
        return 1, world_size if per_node else 0
    require(world_size % per_node == 0, f"parallel.world_size = {world_size}",
            rule=f"must fill whole nodes of {per_node} GPUs (cluster.gpus_per_node)",
            fix="change parallel.world_size or the layout")  # fmt: skip
    return world_size // per_node, per_node


def job_command(step: Step, *, source: ConfigSource) -> list[str]:
    """The job script of a step and its arguments."""
    if step.script.stage == "checkpoints":
        return ["launch/slurm/train.sbatch", *source.options, *step.overrides]
    return ["launch/slurm/stage.sbatch", step.script.path, *source.options, *step.overrides]


def job_environment(step: Step) -> dict[str, str]:
    """The variables that the job script reads."""
    cluster, stage = step.config.cluster, step.script.stage
    environment = dict(cluster.environment)
    if image := cluster.images.get(IMAGE_OF[stage]):
        environment |= {"IMAGE": image, "MOUNTS": ",".join(cluster.mounts)}
    if cluster.python or not image:
        environment["PYTHON"] = cluster.python or sys.executable
    if cluster.setup:
        environment["SETUP"] = "\n".join(cluster.setup)
    if stage == "checkpoints":
        nodes, gpus = resources(step)
        environment["GPUS_PER_NODE"] = str(gpus or step.config.parallel.world_size // nodes)
    return environment


def submit_all(steps: Sequence[Step], *, source: ConfigSource) -> None:
    """Submit a job for each step and print what was submitted. If one is refused, those before it are cancelled."""
    if not steps:
        print("every stage is up to date")
        return
    ids: dict[str, str] = {}
    try:
        for step in steps:
            step.folder.mkdir(parents=True, exist_ok=True)
            arguments = [*job_options(step), *_dependency(step, ids.get), *job_command(step, source=source)]
            ids[step.name] = slurm.submit(step.name, arguments, job_environment(step))
            with JsonlWriter(step.folder / _JOBS_FILE) as writer:
                writer.write({"stage": step.name, "job": ids[step.name]})
    except UserError:
        if ids:
            slurm.cancel(ids.values())
        raise
    rows = [("stage", "job", "after")]
    rows += [(step.name, ids[step.name], ", ".join(name for name in step.after if name in ids)) for step in steps]
    print("\n".join(aligned(rows)))
    print(f"logs: {steps[-1].folder}; launch/submit.py with the same arguments and --status or --cancel")


def shell_script(steps: Sequence[Step], *, source: ConfigSource) -> Iterator[str]:
    """The commands of ``submit_all`` as a script for bash."""
    yield f"cd {shlex.quote(str(ROOT))}"
    for folder in dict.fromkeys(step.folder.absolute() for step in steps):
        yield f"mkdir -p {shlex.quote(str(folder))}"
    names = {step.name for step in steps}
    for step in steps:
        variables = [f"{name}={shlex.quote(value)}" for name, value in job_environment(step).items()]
        dependency = _dependency(step, lambda name: f"${_variable(name)}" if name in names else None)
        options = [*map(shlex.quote, job_options(step)), *dependency]
        command = map(shlex.quote, job_command(step, source=source))
        yield f"{_variable(step.name)}=$({' '.join([*variables, 'sbatch --parsable', *options, *command])})"


def _variable(name: str) -> str:
    return name.replace("-", "_")


def _dependency(step: Step, id_of: Callable[[str], str | None]) -> list[str]:
    ids = [found for name in step.after if (found := id_of(name)) is not None]
    return [f"--dependency=afterok:{':'.join(ids)}"] if ids else []


def status_lines(steps: Sequence[Step]) -> list[str]:
    """A table of the steps: what has been published, which jobs there are, and how far each is."""
    submitted = _submitted(steps)
    jobs = slurm.list_jobs(submitted.values())
    rows = [("stage", "state", "job", "progress", "time left")]
    for step in steps:
        job = submitted.get(step.name, "")
        of_step = [one for one in jobs if one.job == job]
        live = [one for one in of_step if one.is_live]
        progress = None if step.is_published and not live else stage_progress(step.config, step.script.stage)
        rows.append((
            step.name,
            _state(step, job, of_step),
            job,
            "" if progress is None else str(progress),
            max((one.time_left for one in live if one.state == "RUNNING"), key=len, default=""),
        ))  # fmt: skip
    return aligned(rows)


def _state(step: Step, submitted: str, jobs: Sequence[slurm.Job]) -> str:
    live = [job for job in jobs if job.is_live]
    if live:
        states: dict[str, int] = {}
        for job in live:
            state = job.state.lower() + (f" ({job.reason})" if job.state == "PENDING" else "")
            states[state] = states.get(state, 0) + 1
        return ", ".join(state if len(live) == 1 else f"{count} {state}" for state, count in states.items())
    if step.is_published:
        return "done"
    if not submitted:
        return "not submitted"
    ended = {job.state.lower() for job in jobs} - {"completed"} or {"ended"}
    return f"{', '.join(sorted(ended))}, see {step.folder}/{step.name}-{submitted}*.log"


def _submitted(steps: Sequence[Step]) -> dict[str, str]:
    """Step -> the job that was submitted last for it, without steps that had none."""
    files = {folder: folder / _JOBS_FILE for folder in {step.folder for step in steps}}
    last = {
        (folder, record["stage"]): record["job"]
        for folder, path in files.items()
        if path.is_file()
        for record in read_jsonl(path)
    }
    return {step.name: last[step.folder, step.name] for step in steps if (step.folder, step.name) in last}


def _live_jobs(steps: Sequence[Step]) -> dict[str, str]:
    """Step -> its job, if that has not ended."""
    submitted = _submitted(steps)
    live = {job.job for job in slurm.list_jobs(submitted.values()) if job.is_live}
    return {name: job for name, job in submitted.items() if job in live}


def _refuse_live_jobs(steps: Sequence[Step]) -> None:
    if live := _live_jobs(steps):
        ids = ", ".join(f"{job} ({name})" for name, job in live.items())
        raise UserError(f"run_dir = {steps[-1].config.run_dir}", rule=f"has jobs that have not ended: {ids}",
                        fix="wait for them, or add --cancel to this command to cancel them first")  # fmt: skip


def _cancel(steps: Sequence[Step]) -> None:
    live = _live_jobs(steps)
    if not live:
        print("there are no jobs to cancel")
        return
    slurm.cancel(live.values())
    for name, job in live.items():
        print(f"cancelled {job} ({name})")


@contextmanager
def _lock(steps: Sequence[Step]) -> Iterator[None]:
    """Keep two commands from submitting the same run at the same time."""
    folder = steps[-1].folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        if not try_lock(file):
            raise UserError(f"run_dir = {steps[-1].config.run_dir}", rule="another launch/submit.py is submitting it",
                            fix="wait for it")  # fmt: skip
        yield


def _gpu(cluster: ClusterConfig) -> Gpu | None:
    require(cluster.gpu is None or cluster.gpu in GPUS, f"cluster.gpu = {cluster.gpu}", rule="is not known",
            fix=f"use one of {', '.join(GPUS)}, the closest one")  # fmt: skip
    return None if cluster.gpu is None else GPUS[cluster.gpu]


def _default_layout(config: RunConfig, given: dict[str, Any], gpu: Gpu | None) -> list[str]:
    on_gpus = config.cluster.device == "cuda"
    require(gpu is not None or not on_gpus, "cluster.gpu = null",
            rule="no parallel key is set, and the layout depends on the GPU",
            fix=f"set cluster.gpu to the nodes' GPU ({', '.join(GPUS)}), or choose parallel=NAME")  # fmt: skip
    layout, words = default_layout(
        config, given,
        num_gpus=config.cluster.gpus_per_node if on_gpus else 0,
        gpu_bytes=gpu.memory_gb * GB if gpu else 0.0,
    )  # fmt: skip
    log.info("submit: training %s; parallel=NAME chooses another layout", words)
    return layout


def _check_path(config: RunConfig) -> None:
    """Raise ``UserError`` if ``model.path`` is missing. A model of the Hub is downloaded by the jobs."""
    assert config.model is not None
    path = config.model.path
    if path is None or (path[:1] in "./~" and not local_path(path).is_dir()):
        locate_model(path, config.model.revision)
