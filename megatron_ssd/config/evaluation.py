"""Settings of everything that measures: evaluation, general benchmarks, the report."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """How programs are run and judged. ``bubblewrap`` isolates; ``rlimit_only`` bounds resources and isolates nothing.

    ``tolerance`` 0 compares as LiveCodeBench does, exactly; see ``grading/compare.py`` for what more would mean.
    ``packages`` are top-level packages of this environment that programs may import beside the standard library;
    LiveCodeBench's own environment has NumPy. ``prelude`` says which names programs find without importing them:
    ``lcb``, those that LiveCodeBench's checker puts before every program, or ``none``, as plain Python.
    """

    kind: Literal["bubblewrap", "rlimit_only"] = "bubblewrap"
    cpu_seconds: float = 10.0  # of each test
    memory_mib: int = 1024
    output_mib: int = 16
    workers: int | None = None  # null: one a core
    stop_at_first_failure: bool = True  # false runs every test, for a verdict on each
    tolerance: float = 0.0
    packages: tuple[str, ...] = ("numpy",)
    prelude: Literal["lcb", "none"] = "lcb"

    def __post_init__(self) -> None:
        for name in self.packages:
            require(name.isidentifier(), f"evaluation.sandbox.packages = {list(self.packages)}",
                    rule=f"{name!r} is no name that a program could import", fix="use names such as numpy")  # fmt: skip
        for key in ("cpu_seconds", "memory_mib", "output_mib", "workers"):
            value = getattr(self, key)
            require(value is None or value > 0, f"evaluation.sandbox.{key} = {value}", rule="must be positive",
                    fix="leave it out for the default")  # fmt: skip
        require(0 <= self.tolerance < 1, f"evaluation.sandbox.tolerance = {self.tolerance}",
                rule="must be at least 0 and below 1", fix="0 is LiveCodeBench's rule, 1e-6 is usual")  # fmt: skip

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a verdict: all but the number of programs at a time."""
        return {key: value for key, value in asdict(self).items() if key != "workers"}


KS = (1, 5, 10, 20)  # of pass@k, where none are named


def default_ks(num_samples: int) -> tuple[int, ...]:
    """Those of ``KS`` that ``num_samples`` programs a problem allow."""
    return tuple(k for k in KS if k <= num_samples)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is decoded and how it is counted.

    Base and tuned model are decoded over the same grid: ``temperatures`` x ``top_ks`` x ``top_ps``; where temperatures
    and top_ps are empty, the three decodings that ``sampling`` names. A top-k of -1 is none. The best cell of each is
    chosen on one half of the problems and reported on the other. ``models`` of ``[base]`` measures a base that has no
    tuned model yet.
    """

    models: tuple[Literal["base", "ssd"], ...] = ("base", "ssd")

    num_samples: int = 10
    ks: tuple[int, ...] | None = None  # null: 1, 5, 10 and 20, as far as num_samples goes
    temperatures: tuple[float, ...] = ()
    top_ks: tuple[int, ...] = (20,)
    top_ps: tuple[float, ...] = ()
    max_tokens: int = 32768
    confidence: float = 0.95
    bootstrap_samples: int = 10_000
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)

    def __post_init__(self) -> None:
        require(self.num_samples > 0, f"evaluation.num_samples = {self.num_samples}", rule="must be positive",
                fix="use 10")  # fmt: skip
        require(
            self.ks is None or (bool(self.ks) and min(self.ks) >= 1 and max(self.ks) <= self.num_samples),
            f"evaluation.ks = {list(self.ks or ())}",
            rule=f"each k must be between 1 and evaluation.num_samples ({self.num_samples})",
            fix="raise evaluation.num_samples or drop the larger k",
        )
        self._check_grid()
        require(bool(self.models) and len(set(self.models)) == len(self.models),
                f"evaluation.models = {list(self.models)}", rule="must name base, ssd or both, each once",
                fix="use [base,ssd]")  # fmt: skip
        require(self.bootstrap_samples > 0, f"evaluation.bootstrap_samples = {self.bootstrap_samples}",
                rule="must be positive", fix="use 10000")  # fmt: skip
        require(self.max_tokens > 0, f"evaluation.max_tokens = {self.max_tokens}", rule="must be positive",
                fix="the authors' code uses 32768")  # fmt: skip
        require(0 < self.confidence < 1, f"evaluation.confidence = {self.confidence}", rule="must be in (0, 1)",
                fix="use 0.95")  # fmt: skip

    @property
    def measured_ks(self) -> tuple[int, ...]:
        """The k of pass@k, ascending, each once."""
        return default_ks(self.num_samples) if self.ks is None else tuple(sorted(set(self.ks)))

    def _check_grid(self) -> None:
        require(
            bool(self.temperatures) == bool(self.top_ps),
            f"evaluation.temperatures = {list(self.temperatures)}, evaluation.top_ps = {list(self.top_ps)}",
            rule="span the grid together, so both are set or neither",
            fix="add the missing one, for example evaluation.top_ps=[0.8]",
        )
        named = f"evaluation.top_ks = {list(self.top_ks)}"
        require(bool(self.top_ks), named, rule="must hold at least one top-k", fix="use [20], or [-1] for none")
        require(bool(self.temperatures) or self.top_ks == EvaluationConfig.top_ks, named,
                rule="spans the grid with evaluation.temperatures and evaluation.top_ps, and both are empty",
                fix="set all three, for example evaluation.temperatures=[0.7,1.0] evaluation.top_ps=[0.8]")  # fmt: skip
        for temperature, top_k, top_p in itertools.product(self.temperatures, self.top_ks, self.top_ps):
            SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)


@dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """Tasks of lm-eval, with its own prompts, filters, metrics and decoding.

    ``tasks`` are names of tasks or groups of lm-eval; where empty the stage is left out. ``data`` maps a task's name to
    a local file of the split that it is evaluated on, or to a folder of files whose names begin with their split's
    (``test-00000-of-00001.parquet``); other tasks are read from the Hub. ``limit`` takes the first rows of each task.
    ``num_fewshot`` maps a task's name to a number of examples in place of its own. ``max_gen_toks`` caps the tasks' own
    length of an answer. ``chat_template`` puts every prompt into the model's chat template.
    ``think_end_token`` ends the reasoning that is cut off an answer before it is judged, for example ``</think>``.
    ``log_samples`` publishes prompts and answers beside the scores.
    """

    tasks: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    num_fewshot: dict[str, int] = field(default_factory=dict)
    max_gen_toks: int | None = None
    chat_template: bool = False
    think_end_token: str | None = None
    log_samples: bool = True

    def __post_init__(self) -> None:
        require(len(set(self.tasks)) == len(self.tasks), f"regression.tasks = {list(self.tasks)}",
                rule="names a task twice", fix="name it once")  # fmt: skip
        for key in ("data", "num_fewshot"):
            for name in getattr(self, key):
                require(name in self.tasks, f"regression.{key}.{name}", rule="is for a task that is not run",
                        fix=f"add {name} to regression.tasks, or leave this out")  # fmt: skip
        for key in ("limit", "max_gen_toks"):
            value = getattr(self, key)
            require(value is None or value > 0, f"regression.{key} = {value}", rule="must be positive",
                    fix="leave it out for the task's own")  # fmt: skip
        for name, number in self.num_fewshot.items():
            require(number >= 0, f"regression.num_fewshot.{name} = {number}", rule="must not be negative",
                    fix="leave it out for the task's own")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """``page_mib`` bounds ``report/problems.html``, which keeps as much of each response as fits."""

    page_mib: float = 8.0

    def __post_init__(self) -> None:
        require(
            self.page_mib > 0, f"report.page_mib = {self.page_mib}", rule="must be positive", fix="8 is the default"
        )
