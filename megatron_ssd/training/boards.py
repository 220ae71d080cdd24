"""Where metrics are shown beside the file: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

from megatron_ssd.errors import require

_NOT_SHOWN = ("iteration",)


class Board(Protocol):
    """Takes the numbers of an iteration."""

    def show(self, values: dict[str, float], iteration: int) -> None:
        """Add one iteration."""

    def flush(self) -> None:
        """Hand over what is still held back."""

    def close(self) -> None:
        """End."""


class TensorBoard:
    """Event files in ``folder``.

    Args:
        done: iterations of the checkpoint that training goes on from; what was shown past it is taken back.
    """

    def __init__(self, folder: Path, *, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1)

    def show(self, values: dict[str, float], iteration: int) -> None:
        """Add one iteration."""
        for name, value in values.items():
            if name not in _NOT_SHOWN:
                self._writer.add_scalar(f"train/{name}", value, iteration)

    def flush(self) -> None:
        """Write to the files."""
        self._writer.flush()

    def close(self) -> None:
        """Write and close the files."""
        self._writer.close()


class WandbBoard:
    """A run of Weights & Biases, taken up again under the same id after a resume.

    Args:
        project: where the run appears.
        run_id: the same for every start of one training run.
        folder: where its client keeps its files.
        settings: shown as the run's configuration.
    """

    def __init__(self, project: str, *, run_id: str, folder: Path, settings: dict[str, Any]) -> None:
        check_wandb(project)
        # By name: it is no dependency, and has no types here.
        self._run: Any = importlib.import_module("wandb").init(
            project=project, id=run_id, resume="allow", dir=str(folder), config=settings, name=folder.resolve().name
        )

    def show(self, values: dict[str, float], iteration: int) -> None:
        """Add one iteration. One that was shown before the resume is left as it was."""
        self._run.log({f"train/{name}": value for name, value in values.items()}, step=iteration)

    def flush(self) -> None:
        """Nothing: the client sends by itself."""

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()


def check_wandb(project: str | None) -> None:
    """Raise ``ConfigError`` where ``project`` is named and the client is not installed."""
    require(
        project is None or importlib.util.find_spec("wandb") is not None,
        f"training.wandb_project = {project}",
        rule="needs the package wandb, which is not installed",
        fix="pip install wandb in this environment, or leave training.wandb_project out",
    )
