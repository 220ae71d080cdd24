"""Formats numbers, intervals, durations and text of unknown origin for the pages and the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

from megatron_ssd.evaluation.results import ModelName
from megatron_ssd.grading.metrics import Estimate
from megatron_ssd.text_table import DASH, NOT_MEASURED, signed

K = TypeVar("K")

MODEL_TITLES: dict[ModelName, str] = {"base": "base", "ssd": "SSD"}

# Controls but for tab and line ends; zero-width and bidirectional marks; line and paragraph separators; surrogates;
# noncharacters; tag characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value and its interval as text; a dash and words if it is not ``known``."""

    value: str
    interval: str
    known: bool = True


UNKNOWN = Measured(value=DASH, interval=NOT_MEASURED, known=False)


def ends(ks: Sequence[K]) -> tuple[K, ...]:
    """The first and the last k, or the only one: what is shown if there is no room for all."""
    return tuple(dict.fromkeys([*ks[:1], *ks[-1:]]))


def percent(estimate: Estimate) -> Measured:
    """A share in percent with one decimal."""
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


def anchor(problem_id: str) -> str:
    """The part of a problem's address after ``#``."""
    return quote(visible(problem_id), safe="")
