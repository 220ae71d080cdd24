"""Which part of the sampling this process does, where several processes share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_ssd.errors import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Worker ``rank`` of ``world`` that sample one run, and its place among the ``local_world`` of them on its node.

    Null is what torchrun says, else 0 of 1. Workers of one node share its GPUs or processor cores evenly; without the
    local numbers this one takes all that it sees.
    """

    rank: int | None = None
    world: int | None = None
    local_rank: int | None = None
    local_world: int | None = None

    def __post_init__(self) -> None:
        _check_pair("worker.rank", self.rank, "worker.world", self.world)
        _check_pair("worker.local_rank", self.local_rank, "worker.local_world", self.local_world)
        if self.local_world is not None:
            require(self.local_world <= (self.world or 1) and self.rank is not None,
                    f"worker.local_world = {self.local_world}",
                    rule=f"must be at most worker.world ({self.world or 1})",
                    fix="set worker.rank and worker.world for the run, the local ones for this node")  # fmt: skip

    @property
    def share(self) -> slice:
        """Of a list that all workers have in the same order, this one's part."""
        return slice(self.rank or 0, None, self.world or 1)

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return (self.world or 1) == 1

    @property
    def label(self) -> str:
        """How messages call it, for example ``worker 0 of 2``."""
        return f"worker {self.rank or 0} of {self.world or 1}"

    def settled(self, environment: Mapping[str, str]) -> WorkerConfig:
        """This worker as configured, else as torchrun's variables say.

        An array of SLURM is not looked at: its tasks may as well be different runs. ``launch/slurm/generate.sbatch``
        sets rank and world.

        Raises:
            ConfigError: the variables contradict each other.
        """
        if self.rank is not None:
            return self
        rank, world = _pair_from(environment, "RANK", "WORLD_SIZE")
        if rank is None:
            return self
        local_rank, local_world = _pair_from(environment, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return WorkerConfig(rank=rank, world=world, local_rank=local_rank, local_world=local_world)


def _pair_from(environment: Mapping[str, str], rank_name: str, world_name: str) -> tuple[int | None, int | None]:
    """Two variables that torchrun sets together."""
    rank, world = (_number_from(environment, name) for name in (rank_name, world_name))
    _check_pair(rank_name, rank, world_name, world)
    return rank, world


def _number_from(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"environment variable {name} = {text!r}",
            rule="is no whole number",
            fix="unset it, or set worker.rank and worker.world",
        ) from None


def _check_pair(rank_name: str, rank: int | None, world_name: str, world: int | None) -> None:
    """A rank and how many there are: both or neither, and in order."""
    if rank is None and world is None:
        return
    shown = f"{rank_name} = {'null' if rank is None else rank}, {world_name} = {'null' if world is None else world}"
    require(rank is not None and world is not None, shown, rule="one says nothing without the other",
            fix="set both or neither")  # fmt: skip
    assert rank is not None
    assert world is not None
    require(0 <= rank < world, shown, rule=f"ranks count from 0 to {world_name} less one",
            fix=f"use {rank_name} from 0 to {max(world, 1) - 1}")  # fmt: skip
