"""The machine, and the cluster to which ``launch/submit.py`` submits jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from megatron_ssd.config.reference import require_key, require_positive
from megatron_ssd.errors import require

Device = Literal["cuda", "cpu"]
ImageKind = Literal["train", "generate"]

# The stages of a run, each with the kind of image that its job uses: megatron-core and TransformerEngine, or vLLM.
IMAGE_OF: dict[str, ImageKind] = {
    "tokenizer": "train", "problems": "generate", "samples": "generate", "scores": "generate", "dataset": "train",
    "checkpoints": "train", "export": "train", "eval": "generate", "general_benchmarks": "generate",
    "report": "generate",
}  # fmt: skip
_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+|\d+-\d+:\d\d|\d+-\d+:\d\d:\d\d")  # as sbatch(1) lists them
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The machine. ``device`` and ``threads_per_process`` count everywhere, the other keys for ``launch/submit.py``."""

    device: Device = "cuda"
    """Device of training and sampling. It is not detected automatically."""
    threads_per_process: int = 1
    """CPU threads per training process, on device ``cpu``."""
    gpu: str | None = None
    """Kind of the nodes' GPUs, such as ``H100``. Needed if something depends on it: the number format of
    ``precision=auto``, or the layout if no ``parallel`` key is set."""
    gpus_per_node: int = 8
    """GPUs of a node."""
    samples_nodes: int = 1
    """Nodes that sample, each as a task of a job array."""
    eval_nodes: int = 1
    """Nodes that decode the benchmarks, each as a task of a job array."""
    partition: str | None = None
    """SLURM partition; null for the cluster's default."""
    cpu_partition: str | None = None
    """SLURM partition of the stages without a GPU; null for ``partition``."""
    account: str | None = None
    """SLURM account; null for the user's default."""
    qos: str | None = None
    """SLURM quality of service; null for the default."""
    times: dict[str, str] = field(default_factory=dict)
    """Time limit of a job by stage, as sbatch takes it, such as ``{checkpoints: 2-00:00:00}``. A job that reaches it
    saves its work and is requeued. For other stages the limit is that of the job script."""
    options: tuple[str, ...] = ()
    """More options of sbatch for every job, such as ``--constraint=ib``."""
    gpu_options: tuple[str, ...] = ("--exclusive", "--mem=0")
    """Options of sbatch for stages that use all GPUs of a node."""
    cpu_options: tuple[str, ...] = ("--cpus-per-task=8", "--mem=32G")
    """Options of sbatch for the other stages: those without a GPU, and the export, which uses one."""
    images: dict[str, str] = field(default_factory=dict)
    """Container images for pyxis, built from the Dockerfile's targets: ``train`` and ``generate``. Jobs of a kind
    without an image use ``python``."""
    mounts: tuple[str, ...] = ()
    """Mounts of the containers, each ``SRC:DST``. The checkout is always mounted."""
    python: str | None = None
    """Interpreter on the nodes; by default ``python3`` in a container, otherwise the one that submits."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every job, such as ``{HF_HOME: /scratch/hf, HF_TOKEN_PATH: /home/me/.hf_token}``. Name the file of
    a token here, not the token: jobs can be read by others."""
    setup: tuple[str, ...] = ()
    """Lines of shell that run on the node before each stage, such as ``module load cuda``."""

    def __post_init__(self) -> None:
        require_positive(self, "threads_per_process", "samples_nodes", "eval_nodes", fix="use 1 or more")
        require_key(self, "gpus_per_node", self.gpus_per_node >= (self.device == "cuda"),
                    rule=f"is too low for cluster.device = {self.device}", fix="use the number of a node")  # fmt: skip
        _check_names("times", self.times, IMAGE_OF)
        _check_names("images", self.images, IMAGE_OF.values())
        for stage, time in self.times.items():
            require(_TIME.fullmatch(time) is not None, f"cluster.times.{stage} = {time}",
                    rule="is not a time of sbatch", fix="write days-hours:minutes:seconds in quotes")  # fmt: skip
        for name in self.environment:
            require(_VARIABLE.fullmatch(name) is not None, f"cluster.environment = {name!r}",
                    rule="is not the name of a variable", fix="use letters, digits and underscores")  # fmt: skip
        for mount in self.mounts:
            require(":" in mount and "," not in mount, f"cluster.mounts = {mount!r}", rule="is not SRC:DST",
                    fix="write one mount per item, such as [/scratch:/scratch]")  # fmt: skip


def _check_names(key: str, given: dict[str, str], known: Iterable[str]) -> None:
    choices = list(dict.fromkeys(known))
    for name in given:
        require(name in choices, f"cluster.{key}.{name}", rule="there is no such name",
                fix=f"the names are {', '.join(choices)}")  # fmt: skip
