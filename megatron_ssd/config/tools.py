"""Settings of the tools that have keys of their own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.config.problems import BenchmarkSetConfig, ErrataChoice
from megatron_ssd.config.reference import require_key, require_positive
from megatron_ssd.config.training import Weights
from megatron_ssd.errors import require, shown

GradeFormat = Literal["lcb", "humaneval", "mbpp", "leetcode", "humaneval_plus", "mbpp_plus"]


@dataclass(frozen=True, kw_only=True)
class GradeConfig:
    """What ``tools/grade.py`` does: grade completions of any origin against a benchmark's file."""

    problems: str
    """The benchmark's file; for lcb also a folder of JSONL files or a Hub id."""
    format: GradeFormat
    """Format of the benchmark."""
    samples: str
    """JSONL file, also gzipped: question_id, task_id or problem_id, and completion, response, code or solution."""
    out: str
    """Folder for verdicts.jsonl, summary.json and manifest.json."""
    start_date: str | None = None
    """lcb: first contest date of the window, such as 2025-02-01."""
    end_date: str | None = None
    """lcb: last contest date of the window."""
    errata: ErrataChoice = BenchmarkSetConfig.errata
    """lcb: ``keep`` counts the flawed problems that LiveCodeBench's authors name, ``drop`` leaves them out."""
    cpu_seconds: float | None = SandboxConfig.cpu_seconds
    """CPU time per test; null means the benchmark's own limit."""
    memory_mib: int | None = SandboxConfig.memory_mib
    """Address space per program; null means the benchmark's own limit."""
    output_mib: int = SandboxConfig.output_mib
    """Output per program."""
    workers: int | None = SandboxConfig.workers
    """Programs at a time; null means one per core."""
    sandbox: Literal["bubblewrap", "rlimit_only"] = SandboxConfig.kind
    """``bubblewrap``, or ``rlimit_only``, which isolates nothing."""
    stop_at_first_failure: bool = SandboxConfig.stop_at_first_failure
    """False runs every test of every program."""
    tolerance: float = SandboxConfig.tolerance
    """Relative tolerance for numbers. 0 compares exactly, as LiveCodeBench does."""
    packages: tuple[str, ...] = SandboxConfig.packages
    """Packages that programs and checks may import besides the standard library, such as [numpy,sortedcontainers]."""
    prelude: Literal["lcb", "none"] | None = SandboxConfig.prelude
    """``lcb``, the names that LiveCodeBench's checker puts before a program, or ``none``; null means the benchmark's
    own."""
    replace: bool = False
    """Move aside what another command left at ``out``."""

    def __post_init__(self) -> None:
        window = self.start_date or self.end_date
        require(self.format == "lcb" or not window,
                f"start_date = {shown(self.start_date)}, end_date = {shown(self.end_date)}",
                rule="select by contest date, which only format=lcb has", fix="leave them out")  # fmt: skip
        require_key(self, "errata", self.format == "lcb" or self.errata == "keep", rule="only format=lcb has errata",
                    fix="leave it out")  # fmt: skip
        require_key(self, "packages", not self.format.endswith("_plus") or "numpy" in self.packages, fix="add it",
                    rule=f"must name numpy, which the checks of {self.format} import")  # fmt: skip
        _ = self.sandbox_config

    @property
    def sandbox_config(self) -> SandboxConfig:
        """The keys of the sandbox as a section."""
        same = {key.name: getattr(self, key.name) for key in fields(SandboxConfig) if key.name != "kind"}
        return SandboxConfig(kind=self.sandbox, **same)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What ``tools/convert_checkpoint.py`` does."""

    direction: Literal["hf_to_megatron", "megatron_to_hf"]
    """Which folder is read; the other is written."""
    hf: str
    """Hugging Face folder, or, to read from, a Hub id."""
    megatron: str
    """Folder of ``iter_...`` folders, or one such folder to read from."""
    hf_assets: str | None = None
    """Hugging Face folder to take config.json and the tokenizer from, for ``megatron_to_hf``. A checkpoint that was
    converted brings its own."""
    iteration: int | None = None
    """Iteration of the checkpoint; null means the newest."""
    weights: Weights = "model"
    """``model``, or ``ema``: their exponential moving average."""
    max_shard_bytes: int = 5_000_000_000
    """Most bytes per Hugging Face weight file."""
    verify: bool = False
    """Read the Hugging Face folder back and compare it with the checkpoint bit by bit."""
    replace: bool = False
    """Move aside what is at the output path."""

    def __post_init__(self) -> None:
        require_positive(self, "max_shard_bytes", fix="use 5000000000")
        if self.direction == "hf_to_megatron":
            for key in ("hf_assets", "iteration", "weights", "verify"):
                require_key(self, key, getattr(self, key) == getattr(ConvertConfig, key),
                            rule="belongs to direction=megatron_to_hf", fix=f"leave {key} out")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What ``tools/inspect_dataset.py`` shows."""

    run_dir: str | None = None
    """Run whose ``dataset/`` is shown."""
    path: str | None = None
    """Path of a .bin and .idx without extension, in place of a run."""
    tokenizer: str | None = None
    """Folder of the tokenizer that decodes the examples. Null means the run's own ``tokenizer/`` or ``export/``;
    without one, ids are shown."""
    examples: int = 2
    """Number of documents to show, spread over the data set."""
    max_characters: int = 1500
    """Characters to show of each prompt and response."""
    hashes: bool = True
    """Read every file completely and compare it with the manifest. Set it to false for large data sets."""

    def __post_init__(self) -> None:
        require_key(self, "examples", self.examples >= 0, rule="must not be negative", fix="0 shows none")
        require_positive(self, "max_characters", fix="use at least 1")
        require((self.run_dir is None) != (self.path is None), f"run_dir = {self.run_dir} and path = {self.path}",
                rule="one of them must name the data set", fix="use run_dir=RUN or path=FOLDER/NAME")  # fmt: skip
