"""Settings of the data set: how samples become training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What counts as a loop at the end of a response (``dataset.filters.loop_start``).

    The defaults find repetitions that nobody writes on purpose, such as the same 32 tokens four times in succession.
    Short patterns, such as a line of zeros in a table, are not loops.
    """

    max_period: int = 2048
    """Longest repeated part, in tokens."""
    min_repeats: int = 4
    """Least number of repetitions."""
    min_tokens: int = 128
    """Least length of the loop, in tokens."""

    def __post_init__(self) -> None:
        for key, least in (("max_period", 1), ("min_repeats", 2), ("min_tokens", 2)):
            value = getattr(self, key)
            require(value >= least, f"filters.loop.{key} = {value}", rule=f"must be at least {least}",
                    fix=f"use {getattr(LoopConfig, key)}")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which samples are left out of training. The defaults are the paper's minimal filters.

    No response is executed or checked. docs/guides/filters.md names the source of each filter. ``drop_duplicates``,
    ``drop_shortest_fraction`` and ``proxy_band`` look at all samples that are left, in this order.
    """

    drop_empty: bool = True
    """Drop responses without text."""
    drop_one_line_stubs: bool = True
    """Drop responses of one line, not counting blank lines and fences."""
    min_response_tokens: int = 0
    """Drop shorter responses."""
    max_response_tokens: int | None = None
    """Drop longer responses; null sets no bound."""
    drop_loops: bool = False
    """Drop responses that end in a loop, see ``filters.loop``."""
    drop_no_code: bool = False
    """Drop responses without a program."""
    languages: tuple[str, ...] = ()
    """Keep only programs in these languages, as fences name them; "" is a fence without a name. Empty keeps all.
    Responses without a program are not affected."""
    drop_unparsable: bool = False
    """Drop Python programs with a syntax error. One commentator reports this; the authors' code does not do it."""
    drop_duplicates: bool = False
    """Keep the first of equal responses to a problem."""
    drop_shortest_fraction: float = 0.0
    """Drop this fraction of the shortest responses, counted in characters. The authors' code drops a tenth; the
    paper names no such filter."""
    proxy_band: tuple[float, float] | None = None
    """Keep scores (``run_dir/scores``) between these two quantiles, for example ``[0.1, 0.9]``; null keeps all."""
    length_capped: Literal["keep", "mask_end", "drop"] = "keep"
    """Responses that were cut at the length cap: keep them (as the authors do), drop them, or ``mask_end``: take the
    loop at their end out of the loss, or the last ``mask_end_tokens`` if there is no loop."""
    mask_end_tokens: int = 1024
    """Tokens that ``length_capped=mask_end`` masks if a response does not end in a loop. A loop that is too young to be
    recognized is mostly shorter than this: less than four times 256 tokens."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """What counts as a loop."""

    def __post_init__(self) -> None:
        require(0 <= self.drop_shortest_fraction < 1, f"filters.drop_shortest_fraction = {self.drop_shortest_fraction}",
                rule="must be in [0, 1)", fix="the authors' code uses 0.1, the paper 0")  # fmt: skip
        require(self.min_response_tokens >= 0, f"filters.min_response_tokens = {self.min_response_tokens}",
                rule="must not be negative", fix="0 sets no bound")  # fmt: skip
        require(self.max_response_tokens is None or self.max_response_tokens >= max(self.min_response_tokens, 1),
                f"filters.max_response_tokens = {self.max_response_tokens}",
                rule=f"must be at least 1 and filters.min_response_tokens ({self.min_response_tokens})",
                fix="null sets no bound")  # fmt: skip
        low, high = self.proxy_band or (0.0, 1.0)
        require(0 <= low < high <= 1, f"filters.proxy_band = [{low}, {high}]",
                rule="must be two quantiles, 0 <= low < high <= 1",
                fix="[0.1, 0.9] drops a tenth at each end, null drops none")  # fmt: skip
        require(self.mask_end_tokens >= 0, f"filters.mask_end_tokens = {self.mask_end_tokens}",
                rule="must not be negative", fix="0 masks loops only")  # fmt: skip
        wrong = [name for name in self.languages if name != _as_extracted(name)]
        require(not wrong, f"filters.languages = {list(self.languages)}",
                rule=f"names are in lower case, and Python's is python; wrong are {wrong}",
                fix=f"write {[_as_extracted(name) for name in self.languages]}")  # fmt: skip


def _as_extracted(language: str) -> str:
    """The name that ``prompts.extract`` gives to a language."""
    name = language.strip().lower()
    return "python" if name in ("python3", "py", "py3") else name


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Token ids of the data set, and how many processes write it. Output does not depend on the number of processes."""

    ids: Literal["sampled", "retokenized"] = "sampled"
    """``sampled`` uses the token ids as sampled. ``retokenized`` tokenizes each response's text with the tokenizer
    of ``model.path``, as trainers do that keep only text, and reports the differences."""
    compare: bool = False
    """Report how retokenized ids would differ, and write sampled ones."""
    indexed: str | None = None
    """Path, without extension, of a .bin and .idx to use in place of samples, for example made by Megatron-LM's own
    tool."""
    num_workers: int | None = None
    """Processes; null means one per usable core, and fewer for little work."""

    def __post_init__(self) -> None:
        require(self.num_workers is None or self.num_workers > 0, f"preprocess.num_workers = {self.num_workers}",
                rule="must be at least 1", fix="use null for all usable cores")  # fmt: skip
        require(self.indexed is None or not self.needs_tokenizer, f"preprocess.indexed = {self.indexed}",
                rule="is used without changes, and preprocess.ids or preprocess.compare asks to tokenize responses",
                fix="leave these two out")  # fmt: skip

    @property
    def needs_tokenizer(self) -> bool:
        """Whether any response is tokenized again."""
        return self.compare or self.ids == "retokenized"


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What ``tools/inspect_dataset.py`` shows."""

    run_dir: str | None = None
    """Run whose ``dataset/`` is shown."""
    path: str | None = None
    """Path of a .bin and .idx without extension, in place of a run."""
    tokenizer: str | None = None
    """Folder of the tokenizer that decodes the examples. Null means the run's own ``tokenizer/`` or ``export/``;
    without one, ids are shown."""
    examples: int = 2
    """Number of documents to show, spread over the data set."""
    max_characters: int = 1500
    """Characters to show of each prompt and response."""
    hashes: bool = True
    """Read every file completely and compare it with the manifest. Set it to false for large data sets."""

    def __post_init__(self) -> None:
        require((self.run_dir is None) != (self.path is None), f"run_dir = {self.run_dir} and path = {self.path}",
                rule="one of them must name the data set", fix="use run_dir=RUN or path=FOLDER/NAME")  # fmt: skip
