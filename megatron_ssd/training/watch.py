"""What training keeps an eye on: losses that are no number, and losses that jump.

Pure: the same losses give the same state, on every rank, and the state is part of the checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from megatron_ssd.errors import UserError

_WINDOW = 50  # losses that the running mean looks back on, roughly
_SETTLED = 5  # losses before a jump can be told


@dataclass
class LossWatch:
    """Counters of one run.

    ``seen`` are the finite losses, each of them an update. ``mean`` is over the first ones plainly, then old ones fade
    with the window.
    """

    skipped: int = 0
    skipped_in_row: int = 0
    seen: int = 0
    mean: float = 0.0

    def take(self, loss: float, *, spike_factor: float) -> bool:
        """Count an iteration with update; whether its loss is above ``spike_factor`` times the running mean."""
        assert math.isfinite(loss)
        spike = self.seen >= _SETTLED and loss > spike_factor * self.mean
        self.skipped_in_row = 0
        self.seen += 1
        self.mean += (loss - self.mean) / min(self.seen, _WINDOW)
        return spike

    def skip(self) -> None:
        """Count an iteration without update."""
        self.skipped += 1
        self.skipped_in_row += 1

    def check(self, iteration: int, *, max_skipped: int) -> None:
        """Raise ``UserError`` where the last ``max_skipped`` iterations all went without update."""
        if self.skipped_in_row >= max_skipped:
            raise UserError(
                f"training.max_skipped = {max_skipped}",
                rule=f"loss and gradient must be finite, and were not for {self.skipped_in_row} iterations up to "
                f"{iteration}, nor would they be again: iteration {iteration - self.skipped_in_row} made the weights",
                fix="lower optimizer.lr or raise optimizer.lr_warmup_iters, and start again",
            )

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved counters."""
        for name, value in state.items():
            setattr(self, name, value)
