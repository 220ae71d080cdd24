"""What is dropped from the samples before training, and how the rest becomes a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What counts as a response that ends in a loop, see ``dataset.loops``; lengths are in tokens.

    The defaults take what no writer means, four times the same 32 tokens in a row or more, and leave short patterns
    alone, such as a row of zeros in a table.
    """

    max_period: int = 2048
    min_repeats: int = 4
    min_tokens: int = 128

    def __post_init__(self) -> None:
        for key, least in (("max_period", 1), ("min_repeats", 2), ("min_tokens", 2)):
            value = getattr(self, key)
            require(value >= least, f"filters.loop.{key} = {value}", rule=f"must be at least {least}",
                    fix=f"use {getattr(LoopConfig, key)}")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which samples are not trained on. The defaults are the paper's minimal filters;
    docs/guides/filters.md names the others.

    No response is run or checked for truth. ``languages`` and ``drop_unparsable`` look at responses with a program
    only, and ``drop_no_code`` drops the others. The last three are taken over the whole set, in the order in which they
    stand here and each over what is left: of equal responses to a problem the first stays, ``drop_shortest_fraction``
    counts characters, and ``proxy_band`` keeps what lies between two quantiles of the scores in run_dir/scores.

    ``length_capped`` says what becomes of responses that were cut at the length cap. ``mask_end`` takes the loop at
    their end out of the loss, or the last ``mask_end_tokens`` where there is none.
    """

    drop_empty: bool = True
    drop_one_line_stubs: bool = True
    min_response_tokens: int = 0
    max_response_tokens: int | None = None
    drop_loops: bool = False
    drop_no_code: bool = False
    languages: tuple[str, ...] = ()  # as fences name them, "" for a fence without a name; all where none is given
    drop_unparsable: bool = False  # one commentator reports it; not in the authors' code
    drop_duplicates: bool = False
    drop_shortest_fraction: float = 0.0  # the authors' code drops the shortest tenth by characters; the paper does not
    proxy_band: tuple[float, float] | None = None  # one report
    length_capped: Literal["keep", "mask_end", "drop"] = "keep"  # the authors keep them
    mask_end_tokens: int = 1024  # a loop too young to be seen is mostly shorter: less than four times 256 tokens
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        require(0 <= self.drop_shortest_fraction < 1, f"filters.drop_shortest_fraction = {self.drop_shortest_fraction}",
                rule="must be in [0, 1)", fix="0.1 is what the authors' code does, 0 what the paper says")  # fmt: skip
        require(self.min_response_tokens >= 0, f"filters.min_response_tokens = {self.min_response_tokens}",
                rule="must not be negative", fix="0 sets no bound")  # fmt: skip
        require(self.max_response_tokens is None or self.max_response_tokens >= max(self.min_response_tokens, 1),
                f"filters.max_response_tokens = {self.max_response_tokens}",
                rule=f"must be at least 1 and filters.min_response_tokens ({self.min_response_tokens})",
                fix="null sets no bound")  # fmt: skip
        low, high = self.proxy_band or (0.0, 1.0)
        require(0 <= low < high <= 1, f"filters.proxy_band = [{low}, {high}]",
                rule="must be two quantiles, 0 <= low < high <= 1",
                fix="[0.1, 0.9] drops a tenth at either end, null none")  # fmt: skip
        require(self.mask_end_tokens >= 0, f"filters.mask_end_tokens = {self.mask_end_tokens}",
                rule="must not be negative", fix="0 masks loops only")  # fmt: skip
        wrong = [name for name in self.languages if name != _as_extracted(name)]
        require(not wrong, f"filters.languages = {list(self.languages)}",
                rule=f"names are in small letters and Python's is python, unlike {wrong}",
                fix=f"write {[_as_extracted(name) for name in self.languages]}")  # fmt: skip


def _as_extracted(language: str) -> str:
    """The name of a language as ``prompts.extract`` gives it."""
    name = language.strip().lower()
    return "python" if name in ("python3", "py", "py3") else name


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Which ids a document has, and how many processes write them. The bytes do not depend on the number.

    ``retokenized`` reads the response's text with the tokenizer of ``model.path`` again, as trainers do that know no
    more than the text, and reports where that differs from what was sampled. ``compare`` asks for the report alone.

    ``indexed`` takes a .bin and .idx that are there already, named without ending, in place of samples: texts that
    Megatron-LM's own tool has tokenized, or pairs.
    """

    ids: Literal["sampled", "retokenized"] = "sampled"
    compare: bool = False
    indexed: str | None = None
    num_workers: int | None = None  # null: the usable cores, fewer where there is little to do

    def __post_init__(self) -> None:
        require(self.num_workers is None or self.num_workers > 0, f"preprocess.num_workers = {self.num_workers}",
                rule="must be at least 1", fix="use null for all usable cores")  # fmt: skip
        require(self.indexed is None or not self.needs_tokenizer, f"preprocess.indexed = {self.indexed}",
                rule="is taken as it is, and preprocess.ids or preprocess.compare asks for responses to be tokenized",
                fix="leave these two out")  # fmt: skip

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
