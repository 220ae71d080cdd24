"""Lists the cells of the experiment on real models, in the order in which they run.

A cell is one run of the launch scripts that leaves one committed result. The hours are estimates in hours of one core,
from the speeds in ``docs/results/real-coder.md``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

LEARNING_RATES = ("5e-6", "1e-5", "3e-5")
QWEN, SMOLLM = "qwen25-coder-0.5b", "smollm2-135m"
_LR = "{lr}"  # replaced by the learning rate that was chosen


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell.

    Args:
        name: name of its folder of results.
        title: what is decoded, for the table.
        model: folder of the base.
        hours: estimated hours of one core.
        decodes: models that are decoded, as ``evaluation.models`` names them.
        benchmark: the problems, ``test``, ``validation``, ``ground`` or ``codeforces``.
        evaluate: overrides of the evaluation.
        training: name of the training run, which cells share; None if only the base is decoded.
        train: overrides of that run.
        samples_of: training run whose samples are used; sampling again would draw the same.
        is_last: no later cell needs the training run, so its folder is removed.
    """

    name: str
    title: str
    model: str
    hours: float
    decodes: str = "ssd"
    benchmark: str = "test"
    evaluate: tuple[str, ...] = ()
    training: str | None = None
    train: tuple[str, ...] = ()
    samples_of: str | None = None
    is_last: bool = False

    @property
    def needs_learning_rate(self) -> bool:
        """Whether it needs the chosen learning rate."""
        return any(_LR in text for text in (self.training or "", *self.train))

    def with_learning_rate(self, lr: str) -> Cell:
        """The same cell with the chosen learning rate."""
        train = tuple(text.replace(_LR, lr) for text in self.train)
        training = self.training.replace(_LR, lr) if self.training else None
        return dataclasses.replace(self, train=train, training=training)


def _named(values: str, *names: str) -> tuple[str, ...]:
    return tuple(f"sampling.{name}={{{values}}}" for name in names)


def _grid(
    temperatures: str, top_p: str, *, at: str = "", names: tuple[str, ...] = ("default", "eval")
) -> tuple[str, ...]:
    """Overrides of a grid. The settings ``names`` beside the grid become that of its temperature ``at``."""
    grid = (f"evaluation.temperatures=[{temperatures}]", f"evaluation.top_ps=[{top_p}]")
    return (*grid, *_named(f"temperature: {at}, top_k: 20, top_p: {top_p}", *names)) if at else grid


_T, _SMALL_T = "0.7,1.1,1.5", "0.4,0.8,1.2,1.6"
_ALL = ("default", "train", "eval")
_ONE = _grid("1.1", "0.8", at="1.1")  # the authors' decode of their smallest instruct model
_GREEDY = ("evaluation.temperatures=[0]", "evaluation.top_ks=[-1]", "evaluation.top_ps=[1.0]",
           *_named("temperature: 0, top_k: -1, top_p: 1.0", *_ALL))  # fmt: skip
_MAIN = {"title": "SSD", "training": f"qwen-lr{_LR}", "train": (f"optimizer.lr={_LR}",)}
_T1 = _named("temperature: 1.0, top_k: -1, top_p: 1.0", "train")
_T2 = _named("temperature: 2.0, top_k: 10, top_p: 1.0", "train")
_SMALL = {"title": "SSD", "training": "smollm", "train": (f"optimizer.lr={_LR}",)}


def _qwen(name: str, hours: float, **fields: Any) -> Cell:
    return Cell(name=f"qwen-{name}", model=QWEN, hours=hours, **fields)


def _smollm(name: str, hours: float, **fields: Any) -> Cell:
    return Cell(name=f"smollm-{name}", model=SMOLLM, hours=hours, **fields)


def _rate(index: int, lr: str) -> Cell:
    first = f"qwen-lr{LEARNING_RATES[0]}"
    return _qwen(f"lr{lr}", 1.1 if index else 1.2, title=f"SSD, learning rate {lr}", benchmark="validation",
                 evaluate=("evaluation.num_samples=2", *_ONE), training=f"qwen-lr{lr}", train=(f"optimizer.lr={lr}",),
                 samples_of=first if index else None)  # fmt: skip


def _once(name: str, title: str, *train: str) -> Cell:
    """A training run of its own that is decoded once."""
    return _qwen(f"ssd-{name}", 1.4, title=title, evaluate=_ONE, training=f"qwen-{name}",
                 train=(f"optimizer.lr={_LR}", *train), is_last=True)  # fmt: skip


_BASE = {"title": "base", "decodes": "base"}
CELLS = (
    _qwen("ground", 0.6, **_BASE, benchmark="ground", evaluate=_GREEDY),
    _qwen("base-p0.8", 1.5, **_BASE, evaluate=_grid(_T, "0.8", at="1.1")),
    _qwen("base-p1", 1.2, **_BASE, evaluate=_grid(_T, "1.0", at="1.1", names=_ALL)),
    *(_rate(index, lr) for index, lr in enumerate(LEARNING_RATES)),
    _qwen("ssd-p0.8", 1.2, **_MAIN, evaluate=_grid(_T, "0.8", at="1.1")),
    _qwen("ssd-p1", 1.2, **_MAIN, evaluate=_grid(_T, "1.0", at="1.1")),
    _qwen("codeforces", 0.5, **_MAIN, decodes="base,ssd", benchmark="codeforces", evaluate=_ONE, is_last=True),
    _once("seed1", "SSD, seed 1", "seed=1"),
    _once("seed2", "SSD, seed 2", "seed=2"),
    _once("T1", "SSD, T_train 1 without truncation", *_T1),
    _once("T2", "SSD, T_train 2 with top-k 10", *_T2),
    _smollm("base-p0.8", 1.2, **_BASE, evaluate=_grid(_SMALL_T, "0.8")),
    _smollm("base-p1", 1.0, **_BASE, evaluate=_grid(_SMALL_T, "1.0", at="1.2", names=_ALL)),
    _smollm("ssd-p0.8", 1.3, **_SMALL, evaluate=_grid(_SMALL_T, "0.8", at="1.2")),
    _smollm("ssd-p1", 1.0, **_SMALL, evaluate=_grid(_SMALL_T, "1.0", at="1.2"), is_last=True),
)
