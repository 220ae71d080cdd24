"""The results of one benchmark as dataclasses, which ``eval/NAME/summary.json`` contains.

Each dataclass is a JSON object with the same keys. Scores are shares in [0, 1]; a dictionary over k has the k of
pass@k as its keys. A number that could not be measured, because the checker itself failed, is NaN here and null in the
file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.errors import UserError
from megatron_ssd.evaluation.diversity import Diversity
from megatron_ssd.formatting import counted
from megatron_ssd.grading.metrics import Estimate, SignTest
from megatron_ssd.problems.errata import Errata

ModelName = Literal["base", "ssd"]
ClaimStatus = Literal["shown", "not shown", "unclear"]
Half = Literal["selection", "report"]
T = TypeVar("T")

SUMMARY_FILE = "summary.json"
_INTERVAL = ("value", "low", "high")


@dataclass(frozen=True, kw_only=True)
class SsdGain(Estimate):
    """SSD at its best minus one setting of the base, paired by problem."""

    sign_test: SignTest


@dataclass(frozen=True, kw_only=True)
class Score:
    """One model under one decode setting, measured on the reporting half.

    ``decoding`` is the label of the setting. ``base_tests`` has pass@k on the tests of the benchmark that HumanEval+ or
    MBPP+ extends; None for any other benchmark. ``ssd_gain`` is None for SSD itself, and if only the base was measured.
    """

    key: str
    title: str
    model: ModelName
    decoding: str
    num_problems: int
    num_samples: int
    overall: dict[int, Estimate]
    base_tests: dict[int, Estimate] | None
    by_difficulty: dict[str, dict[int, Estimate]]
    problems_by_difficulty: dict[str, int]
    ssd_gain: dict[int, SsdGain] | None


@dataclass(frozen=True, kw_only=True)
class DecodeSetting:
    """One model under one decode setting; the parameters are those of ``config.generation.SamplingParams``."""

    model: ModelName
    decoding: str
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float

    @property
    def has_further_parameters(self) -> bool:
        """Whether more than temperature, top-k and top-p is set."""
        return self.min_p != 0 or self.repetition_penalty != 1


@dataclass(frozen=True, kw_only=True)
class GridCell(DecodeSetting):
    """One cell of the decode grid, measured on the selection half.

    ``pass_at_1`` is pass@k of the smallest k; None if the checker failed on every problem. ``training`` marks the
    setting that the training data were sampled with.
    """

    pass_at_1: float | None
    chosen: bool
    training: bool


@dataclass(frozen=True, kw_only=True)
class EffectivePoint(DecodeSetting, Estimate):
    """One cell of the decode grid, measured on the reporting half, with its effective temperature."""

    effective_temperature: float


@dataclass(frozen=True, kw_only=True)
class EffectiveTemperature:
    """pass@1 over the effective temperature."""

    train_temperature: float
    points: tuple[EffectivePoint, ...]


@dataclass(frozen=True, kw_only=True)
class NaiveChoice(Estimate):
    """The score of the cell ``decoding`` that choosing and reporting on all problems would have claimed."""

    decoding: str


@dataclass(frozen=True, kw_only=True)
class BestCell:
    """How much a model gains by the choice of its best cell: the score of that cell on each half.

    ``grid_mean`` is the mean over all cells on each half. The halves contain different problems, so these means may
    differ; None if nothing was measured on a half.
    """

    model: ModelName
    decoding: str
    num_cells: int
    selection: Estimate
    report: Estimate
    grid_mean: dict[Half, float | None]
    on_all_problems: NaiveChoice


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper, whether this run shows it, and the numbers."""

    text: str
    status: ClaimStatus
    evidence: str


@dataclass(frozen=True, kw_only=True)
class SampleCounts:
    """Sizes of one setting; ``left_out`` are samples on which the checker itself failed."""

    problems: int
    samples: int
    left_out: int


@dataclass(frozen=True, kw_only=True)
class SettingScores:
    """One model under one decode setting, measured on all problems.

    ``base_tests`` is as in ``Score``. ``outcomes`` counts verdicts by status, ``no_code`` is the share of responses
    without a program, and ``no_code_causes`` counts those by cause (none in files of earlier versions).
    """

    overall: dict[int, Estimate]
    base_tests: dict[int, Estimate] | None
    by_difficulty: dict[str, dict[int, Estimate]]
    n: SampleCounts
    finish_reasons: dict[str, int]
    outcomes: dict[str, int]
    no_code: float
    no_code_causes: dict[str, int] = field(default_factory=dict)
    diversity: Diversity


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """Everything that the evaluation stage measured on one benchmark.

    ``benchmark`` is its name in the configuration, ``format`` that of its file. ``headline`` has the base at its
    default decode, at the training decode and at its best, and SSD at its best. ``beside_grid`` is the base at the
    training decode, if that is not a cell of the grid. ``settings`` maps model -> label -> scores. ``difficulties``
    maps the id of each problem to its difficulty, ``flawed`` that of a problem that does not count to the reason.
    """

    benchmark: str
    format: str
    headline: tuple[Score, ...]
    grid: tuple[GridCell, ...]
    beside_grid: GridCell | None
    best_of_grid: tuple[BestCell, ...]
    effective_temperature: EffectiveTemperature
    claims: tuple[Claim, ...]
    claim_rule: str
    settings: dict[ModelName, dict[str, SettingScores]]
    confidence: float
    bootstrap_samples: int
    num_problems: int
    selection_problems: int
    num_samples: int
    difficulties: dict[str, str]
    engine: dict[str, str]
    sandbox: str
    prompt_opens_thinking: bool
    errata: Errata
    flawed: dict[str, str] = field(default_factory=dict)

    @property
    def remarks(self) -> list[str]:
        """What a reader must know about the problems, a sentence each."""
        lines = [self.errata.line] if self.errata.line else []
        if self.flawed:
            lines.append(
                f"not counted, because their own solutions fail their tests: {', '.join(self.flawed)} "
                f"({len(self.flawed)} of {counted(self.num_problems, 'problem')})"
            )
        return lines

    @property
    def ks(self) -> tuple[int, ...]:
        """Every k of pass@k that was measured."""
        return tuple(self.headline[0].overall) if self.headline else ()

    def score(self, key: str) -> Score:
        """The score of the headline with this key."""
        return next(score for score in self.headline if score.key == key)

    def setting(self, score: Score) -> SettingScores:
        """The same model and setting as ``score``, on all problems."""
        return self.settings[score.model][score.decoding]


def write_json(path: Path, results: Any) -> None:
    """Write results, or a part of them, as JSON that ``from_json`` reads."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(results), indent=2).decode() + "\n")


def from_json(text: str, kind: type[T]) -> T:
    """The opposite of ``write_json``. Raises ``ValueError`` if ``text`` is not JSON or does not fit ``kind``."""
    return msgspec.convert(json.loads(text, object_hook=_nan_for_null), kind, str_keys=True)


def read_results(path: Path) -> EvaluationResults:
    """Read ``summary.json`` of a benchmark on which both models were evaluated.

    Raises:
        UserError: the file is missing, is from another version, or covers one model only.
    """
    if not path.is_file():
        raise UserError(f"file {path}", rule="does not exist", fix="run launch/evaluate.py to its end")
    try:
        results = from_json(path.read_text(encoding="utf-8"), EvaluationResults)
    except ValueError as error:
        folder = path.parents[1]
        raise UserError(
            f"file {path}",
            rule=f"is not an evaluation summary of this version ({error})",
            fix=f"rename {folder} to {folder.name}.replaced-1 and run launch/evaluate.py again, which reuses its "
            "responses",
        ) from None
    missing = {"base_default", "base_train", "base_best", "ssd_best"} - {score.key for score in results.headline}
    if missing:
        raise UserError(
            f"file {path}", rule=f"has no {', '.join(sorted(missing))}", fix="evaluate both base and tuned model"
        )
    return results


def _nan_for_null(values: dict[str, Any]) -> dict[str, Any]:
    """An estimate that is null in the file is NaN."""
    if all(name in values for name in _INTERVAL):
        return {**values, **{name: math.nan for name in _INTERVAL if values[name] is None}}
    return values
