"""Numbers as a reader wants them, shared by the page and the terminal: per cent, points, intervals, times, sizes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from megatron_ssd.artifacts.manifest import Manifest
from megatron_ssd.evaluation.results import EvaluationResults, ModelName, Score
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.text_table import DASH, NOT_MEASURED, signed, split_cells

K = TypeVar("K")

# Controls but for tab and line ends; zero-width and bidirectional marks; line and paragraph separators; surrogates;
# noncharacters; tag characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value and its interval, written out; where it is not ``known``, a dash and words."""

    value: str
    interval: str
    known: bool = True


@dataclass(frozen=True, kw_only=True)
class HeadlineRow:
    """One setting: pass@k in per cent, and how far SSD at its best is above it, in points."""

    key: str
    title: str
    model: ModelName
    decoding: str
    scores: dict[int, Measured]
    gains: dict[int, Measured]  # empty for SSD itself
    split: tuple[str, str]  # of the first k: problems ahead, behind and tied, and the p value; dashes for SSD itself


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage of the run."""

    stage: str
    engine: str
    seconds: str
    created: str
    counts: str


UNKNOWN = Measured(value=DASH, interval=NOT_MEASURED, known=False)


def headline_rows(results: EvaluationResults) -> list[HeadlineRow]:
    """The headline table, in the order in which it is shown."""
    return [
        HeadlineRow(
            key=score.key,
            title=score.title,
            model=score.model,
            decoding=score.decoding,
            scores={k: percent(estimate) for k, estimate in score.overall.items()},
            gains={k: points(estimate) for k, estimate in (score.ssd_gain or {}).items()},
            split=_split(score),
        )
        for score in results.headline
    ]


def _split(score: Score) -> tuple[str, str]:
    if not score.ssd_gain:
        return DASH, DASH
    first = next(iter(score.ssd_gain.values()))
    *counts, p_value = split_cells(dataclasses.asdict(first.sign_test))
    return (DASH if DASH in counts else ", ".join(counts)), p_value


def stage_rows(manifests: Mapping[str, Manifest]) -> list[StageRow]:
    """Engine, time and counts of each stage, in the order in which they ran."""
    return [
        StageRow(
            stage=stage,
            engine=f"{manifest.engine['name']} {manifest.engine['version']}" if manifest.engine else DASH,
            seconds=duration(manifest.seconds),
            created=manifest.created.replace("T", " ").replace("+00:00", " UTC"),
            counts=", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in manifest.counts.items()),
        )
        for stage, manifest in manifests.items()
    ]


def ends(ks: Sequence[K]) -> tuple[K, ...]:
    """The first and the last k, or the only one: what is shown where there is no room for all."""
    return tuple(dict.fromkeys([*ks[:1], *ks[-1:]]))


def percent(estimate: Estimate) -> Measured:
    """A share as per cent with one decimal."""
    if not estimate.is_known:
        return UNKNOWN
    return Measured(
        value=f"{estimate.value * 100:.1f}", interval=f"{estimate.low * 100:.1f} to {estimate.high * 100:.1f}"
    )


def points(estimate: Estimate) -> Measured:
    """A difference of shares as signed percentage points."""
    if not estimate.is_known:
        return UNKNOWN
    return Measured(
        value=signed(estimate.value), interval=f"{signed(estimate.low)} to {signed(estimate.high)}"
    )  # fmt: skip


def duration(seconds: float) -> str:
    """``48 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def confidence_text(confidence: float) -> str:
    """``95 %`` for 0.95."""
    return f"{confidence * 100:g} %"


def compact(value: float) -> str:
    """A number in few characters: ``0.25``, ``1.2k``, ``3e-4``."""
    size = abs(value)
    if size >= 1000:
        return f"{value / 1000:g}k"
    if value and size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.6g}"


def visible(text: str) -> str:
    """``text`` with each such character as its code in brackets, for example ``⟨U+202E⟩``; always valid UTF-8."""
    return _UNSEEN.sub(lambda match: f"\N{MATHEMATICAL LEFT ANGLE BRACKET}U+{ord(match[0]):04X}"
                                     "\N{MATHEMATICAL RIGHT ANGLE BRACKET}", text)  # fmt: skip
