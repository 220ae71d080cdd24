"""What the report shows, as plain values: no files, no markup. ``data.py`` fills them, plots and tables read them.

Scores are shares in [0, 1]; ``k`` is the k of pass@k. Intervals hold at ``Scores.confidence``. A score that could not
be measured, because the judge itself failed, is NaN.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from megatron_ssd.artifacts.manifest import Manifest
from megatron_ssd.evaluation.diversity import Diversity
from megatron_ssd.grading.metrics import SignTest
from megatron_ssd.problems.errata import Errata
from megatron_ssd.report.problems import ProblemFacts

ModelName = Literal["base", "ssd"]
ClaimStatus = Literal["shown", "not shown", "unclear"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether there was anything to measure."""
        return not math.isnan(self.value)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Null stands for what could not be measured; what else ``values`` holds is not looked at."""
        parts = {name: values[name] for name in ("value", "low", "high")}
        return cls(**{name: math.nan if value is None else value for name, value in parts.items()})

    def to_json(self) -> dict[str, float | None]:
        """Value and interval, null where not measured."""
        return {name: value if self.is_known else None for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One model under one decoding setting, measured on the reporting half."""

    key: str
    title: str
    model: ModelName
    decoding: str
    num_problems: int
    num_samples: int
    overall: dict[int, Estimate]
    by_difficulty: dict[str, dict[int, Estimate]]
    problems_by_difficulty: dict[str, int]
    ssd_gain: dict[int, Estimate] | None  # SSD at its best minus this one, paired by problem; None for SSD itself
    sign_tests: dict[int, SignTest] | None  # on how many problems it is ahead, for each k
    diversity: Diversity  # on all problems, like no_code
    no_code: float  # share of responses without a program


@dataclass(frozen=True, kw_only=True)
class DecodeSetting:
    """One model under one decode setting. ``top_k`` -1 is none; ``further`` is whether more than these three act."""

    model: ModelName
    decoding: str
    temperature: float
    top_k: int
    top_p: float
    further: bool


@dataclass(frozen=True, kw_only=True)
class GridCell(DecodeSetting):
    """One point of the decode grid, measured on the selection half."""

    score: float | None  # pass@k of the smallest k; None where the judge failed on every problem
    chosen: bool
    training: bool  # the training data were sampled so


@dataclass(frozen=True, kw_only=True)
class EffectivePoint(DecodeSetting):
    """One point of the decode grid, measured on the reporting half, over T_eff."""

    effective_temperature: float
    estimate: Estimate


@dataclass(frozen=True, kw_only=True)
class BestCell:
    """How far the choice of a model's best cell flatters it: that cell on either half, and a naive choice.

    ``grid_means`` are the means over the whole grid on the selection and on the reporting half, which differ by what
    problems they hold alone; None where nothing was measured. ``on_all_problems`` is what choosing and reporting on all
    problems would have claimed.
    """

    model: ModelName
    decoding: str
    num_cells: int
    selection: Estimate
    report: Estimate
    grid_means: tuple[float | None, float | None]
    on_all_problems: Estimate
    decoding_on_all_problems: str


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the decode settings did. ``beside_grid``: the base at the training decode, where that is no cell."""

    grid: tuple[GridCell, ...]
    beside_grid: GridCell | None
    best_cells: tuple[BestCell, ...]
    effective: tuple[EffectivePoint, ...]
    train_temperature: float


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper against what this run measured."""

    text: str
    status: ClaimStatus
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the evaluation stage found. ``headline``: base at its default, at the training decode, at its best; SSD."""

    headline: tuple[Score, ...]
    sweep: Sweep
    claims: tuple[Claim, ...]
    confidence: float
    selection_problems: int
    difficulties: dict[str, str]  # problem id -> difficulty
    outcomes: dict[ModelName, dict[str, int]]  # verdict -> programs, each model at its best setting, all problems
    claim_rule: str
    errata: Errata

    @property
    def ks(self) -> tuple[int, ...]:
        """Every k of pass@k that was measured."""
        return tuple(self.headline[0].overall) if self.headline else ()

    def row(self, key: str) -> Score:
        """The headline row called ``key``."""
        return next(score for score in self.headline if score.key == key)


@dataclass(frozen=True, kw_only=True)
class TrainingPoint:
    """One logged iteration that updated the model: its numbers are finite."""

    iteration: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class SamplingFacts:
    """The training data as sampled. ``lengths`` are tokens of each response that was run.

    ``dropped`` are samples that the filters took, by reason.
    """

    num_samples: int
    finish_reasons: dict[str, int]
    skip_reasons: dict[str, int]
    lengths: tuple[int, ...]
    dropped: dict[str, int]
    num_kept: int
    tokens_per_second: float | None  # None where a resumed stage had nothing left to draw


@dataclass(frozen=True, kw_only=True)
class FailedTest:
    """The first test that a program fails: its number from 1, of ``total``, and its input.

    The input of one that ``is_check`` is a script of assertions.
    """

    number: int
    total: int
    input: str
    is_check: bool


@dataclass(frozen=True, kw_only=True)
class Program:
    """A response of one model and what came of running it; ``failed`` where a test failed whose text was kept."""

    model: ModelName
    decoding: str
    response: str
    verdict: str
    detail: str
    failed: FailedTest | None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A problem with one response of each model."""

    problem_id: str
    difficulty: str
    prompt: str
    programs: tuple[Program, ...]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the page and ``summary.json`` are made from."""

    run_name: str
    scores: Scores
    problems: ProblemFacts
    training: tuple[TrainingPoint, ...]
    num_skipped: int  # iterations without a finite loss or gradient, which updated nothing
    sampling: SamplingFacts
    examples: tuple[Example, ...]
    manifests: dict[str, Manifest]  # by stage, in the order in which they ran
    settings: dict[str, Any] = field(default_factory=dict)  # dotted key -> value, as the stages ran with it
