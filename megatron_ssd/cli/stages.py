"""The stages of a run: their scripts, their order and what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from megatron_ssd.artifacts.manifest import MADE_BY
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.dataset.corpus import world_stage
from megatron_ssd.dataset.stage import dataset_stage
from megatron_ssd.errors import ConfigError, require
from megatron_ssd.evaluation.checkpoints import Evaluations
from megatron_ssd.export.stage import export_stage
from megatron_ssd.general_benchmarks.stage import general_benchmarks_stage
from megatron_ssd.generation.scoring import scores_stage
from megatron_ssd.generation.stage import samples_stage
from megatron_ssd.planner.default_layout import choose_layout
from megatron_ssd.planner.memory import GB
from megatron_ssd.problems.stage import problems_stage
from megatron_ssd.report.stage import report_stage
from megatron_ssd.training.stage import training_stage


@dataclass(frozen=True)
class Script:
    """An entry point, and the stage that says whether it has to be started.

    Args:
        stage: the folder that it makes.
        path: the script, in the checkout.
        does: what it does, for logs.
        open_stage: the stage as a configuration identifies it.
        needs: sections without a default that it reads.
        gpus: what it uses of a node with GPUs.
    """

    stage: str
    path: str
    does: str
    open_stage: Callable[[RunConfig], Stage | Evaluations]
    needs: tuple[str, ...] = ()
    gpus: Literal["none", "one", "all"] = "none"


_MODEL = ("model",)
_SCRIPTS = {
    stage: Script(stage, MADE_BY[stage], does, *rest)
    for stage, does, *rest in (
        ("tokenizer", "make the small world: its tokenizer and a corpus to train on", world_stage),
        ("problems", "choose the problems to sample and compare them with the benchmark", problems_stage,
         ("problems",)),
        ("samples", "sample responses to the problems from the frozen model with vLLM", samples_stage,
         ("model", "sampling"), "all"),
        ("scores", "score each response under the proxy model", scores_stage, _MODEL, "all"),  # only if one is named
        ("dataset", "filter the samples and write them as Megatron's data set", dataset_stage, _MODEL),
        ("checkpoints", "train on the data set with Megatron-Core", training_stage, _MODEL, "all"),
        ("export", "write the trained weights as a Hugging Face folder", export_stage, _MODEL, "one"),
        ("eval", "decode the benchmark with base and tuned model and run the programs", Evaluations,
         ("model", "benchmark", "sampling"), "all"),
        # only if tasks are named
        ("general_benchmarks", "measure general benchmarks through lm-eval", general_benchmarks_stage, _MODEL, "all"),
        ("report", "compare base and tuned model and write the report", report_stage, _MODEL),
    )
}  # fmt: skip
BASE = [_SCRIPTS[name] for name in ("tokenizer", "checkpoints", "export")]
LOOP = {name: script for name, script in _SCRIPTS.items() if name != "tokenizer"}


def default_layout(
    config: RunConfig, given: dict[str, Any], *, num_gpus: int, gpu_bytes: float
) -> tuple[list[str], str]:
    """(overrides, words for the log) of the layout for a run that chooses none.

    Args:
        given: the configuration as it was composed; a micro batch that is set in it is kept.
        num_gpus: GPUs to train on; with none, one process trains.
        gpu_bytes: memory of each.
    """
    if num_gpus == 0:
        return ["parallel.use_distributed_optimizer=false"], "in one process"  # it only copies one process's state
    keep_micro_batch = "micro_batch_size" in given.get("training", {})
    choice = choose_layout(config, num_gpus=num_gpus, gpu_bytes=gpu_bytes, keep_micro_batch=keep_micro_batch)
    return choice.overrides, f"on {choice} of {gpu_bytes / GB:.0f} GB"


def scripts_until(config: RunConfig, last: str) -> list[Script]:
    """The scripts of a run up to the stage ``last``, without those that ``config`` leaves out.

    Raises:
        UserError: the configuration leaves ``last`` out, or a section that one of them needs is missing.
    """
    require(not config.dry_run, "dry_run = true", rule="the stages of a run are to be run",
            fix="use it with launch/train.py or launch/push.py")  # fmt: skip
    left_out = {}
    if config.proxy is None:
        left_out["scores"] = ("needs a proxy model", "name one with proxy.path=FOLDER")
    if not config.general_benchmarks.tasks:
        left_out["general_benchmarks"] = ("needs tasks of lm-eval", "set general_benchmarks.tasks")
    if last in left_out:
        rule, fix = left_out[last]
        raise ConfigError(f"--until {last}", rule=rule, fix=fix)
    names = [name for name in LOOP if name not in left_out]
    scripts = [LOOP[name] for name in names[: names.index(last) + 1]]
    for section in dict.fromkeys(section for script in scripts for section in script.needs):
        needed(getattr(config, section), section)
    return scripts
