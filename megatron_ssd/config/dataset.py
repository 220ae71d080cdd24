"""What is dropped from the samples before training, and how the rest becomes a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """The paper's minimal filters: empty responses and one-line stubs. No response is run or checked for truth."""

    drop_empty: bool = True
    drop_one_line_stubs: bool = True
    drop_shortest_fraction: float = 0.0  # the authors' code drops the shortest tenth by characters; the paper does not

    def __post_init__(self) -> None:
        require(0 <= self.drop_shortest_fraction < 1, f"filters.drop_shortest_fraction = {self.drop_shortest_fraction}",
                rule="must be in [0, 1)", fix="0.1 is what the authors' code does, 0 what the paper says")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Which ids a document has, and how many processes write them. The bytes do not depend on the number.

    ``retokenized`` reads the response's text with the tokenizer of ``model.path`` again, as trainers do that know no
    more than the text, and reports where that differs from what was sampled. ``compare`` asks for the report alone.
    """

    ids: Literal["sampled", "retokenized"] = "sampled"
    compare: bool = False
    num_workers: int | None = None  # null: the usable cores, fewer where there is little to do

    def __post_init__(self) -> None:
        require(self.num_workers is None or self.num_workers > 0, f"preprocess.num_workers = {self.num_workers}",
                rule="must be at least 1", fix="use null for all usable cores")  # fmt: skip

    @property
    def needs_tokenizer(self) -> bool:
        """Whether responses are tokenized again at all."""
        return self.compare or self.ids == "retokenized"


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What ``tools/inspect_dataset.py`` is asked to show.

    Args:
        run_dir: the run whose dataset/ is shown.
        path: in place of a run, path of a .bin and .idx without ending, whoever made them.
        tokenizer: folder whose tokenizer decodes the examples; where it is not said, the run's own tokenizer/ or
            export/. Ids are shown where there is none.
        examples: documents that are shown, from all over the data set.
        max_characters: how much of a prompt or a response is shown.
        hashes: read every file whole and compare it with the manifest; false for large data sets.
    """

    run_dir: str | None = None
    path: str | None = None
    tokenizer: str | None = None
    examples: int = 2
    max_characters: int = 1500
    hashes: bool = True

    def __post_init__(self) -> None:
        require((self.run_dir is None) != (self.path is None), f"run_dir = {self.run_dir} and path = {self.path}",
                rule="one of the two names the data set", fix="use run_dir=runs/mine, or path=FOLDER/NAME")  # fmt: skip
