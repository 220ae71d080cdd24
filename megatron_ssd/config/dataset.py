"""Settings of the data set: how samples become training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_ssd.config.reference import require_key, require_positive


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
            require_key(self, key, getattr(self, key) >= least, rule=f"must be at least {least}",
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
        require_key(self, "drop_shortest_fraction", 0 <= self.drop_shortest_fraction < 1, rule="must be in [0, 1)",
                    fix="the authors' code uses 0.1, the paper 0")  # fmt: skip
        for key, fix in (("min_response_tokens", "0 sets no bound"), ("mask_end_tokens", "0 masks loops only")):
            require_key(self, key, getattr(self, key) >= 0, rule="must not be negative", fix=fix)
        least, most = self.min_response_tokens, self.max_response_tokens
        require_key(self, "max_response_tokens", most is None or most >= max(least, 1), fix="null sets no bound",
                    rule=f"must be at least 1 and filters.min_response_tokens ({least})")  # fmt: skip
        low, high = self.proxy_band or (0.0, 1.0)
        require_key(self, "proxy_band", 0 <= low < high <= 1, rule="must be two quantiles, 0 <= low < high <= 1",
                    fix="[0.1, 0.9] drops a tenth at each end, null drops none")  # fmt: skip
        wrong = [name for name in self.languages if name != _as_extracted(name)]
        require_key(self, "languages", not wrong, fix=f"write {[_as_extracted(name) for name in self.languages]}",
                    rule=f"names are in lower case, and Python's is python; wrong are {wrong}")  # fmt: skip


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
        require_positive(self, "num_workers", fix="use null for all usable cores")
        require_key(self, "indexed", self.indexed is None or not self.needs_tokenizer, fix="leave these two out",
                    rule="is used without changes, and preprocess.ids or preprocess.compare asks to tokenize responses",
                    )  # fmt: skip

    @property
    def needs_tokenizer(self) -> bool:
        """Whether any response is tokenized again."""
        return self.compare or self.ids == "retokenized"
