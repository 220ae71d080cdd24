"""Settings of the stages that measure a model."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.config.reference import require_key, require_positive
from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """How programs are executed and checked."""

    kind: Literal["bubblewrap", "rlimit_only"] = "bubblewrap"
    """``bubblewrap`` isolates programs; ``rlimit_only`` bounds their resources and isolates nothing."""
    cpu_seconds: float | None = None
    """CPU time per test; null means the benchmark's own limit, see ``grading/rules.py``."""
    memory_mib: int | None = None
    """Address space per program; null means the benchmark's own limit."""
    output_mib: int = 16
    """Output per program."""
    workers: int | None = None
    """Programs at a time; null means one per core."""
    stop_at_first_failure: bool = True
    """Skip the remaining tests of a program after the first failure; false gives a verdict for each test."""
    tolerance: float = 0.0
    """Relative tolerance for numbers. 0 compares exactly, as LiveCodeBench does, see ``grading/compare.py``."""
    packages: tuple[str, ...] = ("numpy",)
    """Packages of this environment that programs may import besides the standard library. LiveCodeBench's own
    environment has NumPy."""
    prelude: Literal["lcb", "none"] | None = None
    """Names that programs find without importing them: ``lcb``, those that LiveCodeBench's checker puts before every
    program, or ``none``; null means what the benchmark's own checker does."""

    def __post_init__(self) -> None:
        for name in self.packages:
            require_key(self, "packages", name.isidentifier(), fix="use names such as numpy",
                        rule=f"{name!r} is not a name that programs can import")  # fmt: skip
        limits = ("cpu_seconds", "memory_mib", "output_mib", "workers")
        require_positive(self, *limits, fix="leave it out for the default")
        require_key(self, "tolerance", 0 <= self.tolerance < 1, rule="must be at least 0 and below 1",
                    fix="0 is LiveCodeBench's rule, 1e-6 is usual")  # fmt: skip

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a verdict: everything but the number of programs at a time."""
        return {key: value for key, value in asdict(self).items() if key != "workers"}


# Task of lm-eval -> the benchmark (``benchmark=NAME``) that the evaluation stage measures instead.
_BENCHMARKS = {
    **dict.fromkeys(("humaneval", "humaneval_64", "humaneval_instruct", "humaneval_64_instruct"), "humaneval"),
    "humaneval_plus": "humaneval_plus",
    **dict.fromkeys(("mbpp", "mbpp_instruct"), "mbpp"),
    **dict.fromkeys(("mbpp_plus", "mbpp_plus_instruct"), "mbpp_plus"),
}
KS = (1, 5, 10, 20)  # of pass@k by default


def default_ks(num_samples: int) -> tuple[int, ...]:
    """The values of ``KS`` that ``num_samples`` programs per problem allow."""
    return tuple(k for k in KS if k <= num_samples)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is decoded, and how it is counted.

    Base and tuned model are decoded over the same grid, ``temperatures`` x ``top_ks`` x ``top_ps``. The best cell of
    each is chosen on one half of the problems and reported on the other.
    """

    models: tuple[Literal["base", "ssd"], ...] = ("base", "ssd")
    """Models to evaluate. ``[base]`` measures a base that has no tuned model yet."""
    checkpoints: Literal["last", "all"] = "last"
    """``last`` evaluates the exported checkpoint. ``all`` also exports and evaluates each other one, at the setting
    ``sampling.eval`` only."""

    num_samples: int = 10
    """Programs per problem and cell."""
    ks: tuple[int, ...] | None = None
    """Values of k for pass@k. Null means 1, 5, 10 and 20, up to ``num_samples``."""
    temperatures: tuple[float, ...] = ()
    """Temperatures of the grid. Empty, together with ``top_ps``, means the three settings that ``sampling`` names."""
    top_ks: tuple[int, ...] = (20,)
    """Top-k of the grid; -1 is off."""
    top_ps: tuple[float, ...] = ()
    """Top-p of the grid."""
    max_tokens: int = 32768
    """Longest response, in tokens."""
    confidence: float = 0.95
    """Level of the confidence intervals."""
    bootstrap_samples: int = 10_000
    """Bootstrap samples per interval."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    """How programs are executed and checked."""

    def __post_init__(self) -> None:
        require_positive(self, "num_samples", fix="use 10")
        require_positive(self, "bootstrap_samples", fix="use 10000")
        require_positive(self, "max_tokens", fix="the authors' code uses 32768")
        known = self.ks is None or (bool(self.ks) and min(self.ks) >= 1 and max(self.ks) <= self.num_samples)
        require_key(self, "ks", known, fix="raise evaluation.num_samples or drop the larger k",
                    rule=f"each k must be between 1 and evaluation.num_samples ({self.num_samples})")  # fmt: skip
        self._check_grid()
        require_key(self, "models", bool(self.models) and len(set(self.models)) == len(self.models),
                    rule="must name base, ssd or both, each once", fix="use [base,ssd]")  # fmt: skip
        require_key(self, "checkpoints", self.checkpoints == "last" or "ssd" in self.models,
                    rule=f"measures tuned models, and evaluation.models = {list(self.models)}",
                    fix="add ssd to evaluation.models")  # fmt: skip
        require_key(self, "confidence", 0 < self.confidence < 1, rule="must be in (0, 1)", fix="use 0.95")

    @property
    def measured_ks(self) -> tuple[int, ...]:
        """The values of k for pass@k, ascending, without duplicates."""
        return default_ks(self.num_samples) if self.ks is None else tuple(sorted(set(self.ks)))

    def _check_grid(self) -> None:
        require(
            bool(self.temperatures) == bool(self.top_ps),
            f"evaluation.temperatures = {list(self.temperatures)}, evaluation.top_ps = {list(self.top_ps)}",
            rule="make the grid together, so set both or neither",
            fix="add the missing one, for example evaluation.top_ps=[0.8]",
        )
        require_key(self, "top_ks", bool(self.top_ks), rule="must hold at least one top-k",
                    fix="use [20], or [-1] for none")  # fmt: skip
        require_key(self, "top_ks", bool(self.temperatures) or self.top_ks == EvaluationConfig.top_ks,
                    rule="makes the grid together with evaluation.temperatures and evaluation.top_ps, which are empty",
                    fix="set all three, for example evaluation.temperatures=[0.7,1.0] evaluation.top_ps=[0.8]"
                    )  # fmt: skip
        for temperature, top_k, top_p in itertools.product(self.temperatures, self.top_ks, self.top_ps):
            SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)


@dataclass(frozen=True, kw_only=True)
class GeneralBenchmarksConfig:
    """Tasks of lm-eval, with its own prompts, filters, metrics and decoding."""

    tasks: tuple[str, ...] = ()
    """Tasks or groups of lm-eval. The stage is left out if there are none."""
    data: dict[str, str] = field(default_factory=dict)
    """Task to local file of its evaluation split, or to a folder of files whose names begin with their split
    (``test-00000-of-00001.parquet``). Other tasks are read from the Hub."""
    limit: int | None = None
    """Only the first documents of each task."""
    num_fewshot: dict[str, int] = field(default_factory=dict)
    """Task to number of few-shot examples; other tasks use their own number."""
    max_gen_toks: int | None = None
    """Cap on each task's own response length."""
    chat_template: bool = False
    """Put every prompt into the model's chat template."""
    think_end_token: str | None = None
    """End of the reasoning that is removed before an answer is scored, for example ``</think>``."""
    log_samples: bool = True
    """Publish prompts and answers with the scores."""

    def __post_init__(self) -> None:
        for name in self.tasks:
            require(name not in _BENCHMARKS, f"general_benchmarks.tasks: {name}",
                    rule="is a benchmark of the evaluation stage, which has the official rules and prompts of its own",
                    fix=f"use benchmark={_BENCHMARKS.get(name)}")  # fmt: skip
        require_key(self, "tasks", len(set(self.tasks)) == len(self.tasks), rule="names a task twice",
                    fix="name it once")  # fmt: skip
        for key in ("data", "num_fewshot"):
            for name in getattr(self, key):
                require(name in self.tasks, f"general_benchmarks.{key}.{name}", rule="is for a task that is not run",
                        fix=f"add {name} to general_benchmarks.tasks, or leave this out")  # fmt: skip
        require_positive(self, "limit", "max_gen_toks", fix="leave it out for the task's own value")
        for name, number in self.num_fewshot.items():
            require(number >= 0, f"general_benchmarks.num_fewshot.{name} = {number}", rule="must not be negative",
                    fix="leave it out for the task's own value")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Limits of the report."""

    page_mib: float = 8.0
    """Size of ``report/problems-NAME.html``, which keeps as much of each response as fits."""

    def __post_init__(self) -> None:
        require_positive(self, "page_mib", fix="8 is the default")
