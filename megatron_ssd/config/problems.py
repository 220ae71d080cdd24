"""Settings of problems: training problems, decontamination, benchmarks, the minicode world."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_ssd.config.reference import require_key, require_positive
from megatron_ssd.errors import require

ErrataChoice = Literal["keep", "drop"]
BenchmarkFormat = Literal["minicode", "livecodebench", "humaneval", "humaneval_plus", "mbpp", "mbpp_plus"]

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """The columns of a data set."""

    statement: str
    """Text of the problem."""
    id: str | None = None
    """Id of the problem; null names a problem after its row."""
    starter_code: str | None = None
    """Starter code; null means that every problem is a program on standard input."""
    passed: str | None = None
    """Whether the row passed, as a truth value."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(name for name in (self.id, self.statement, self.starter_code, self.passed) if name is not None)


@dataclass(frozen=True, kw_only=True)
class ProblemsConfig:
    """Training problems.

    Rows are dropped in this order: not passed, no text, duplicates, near duplicates, and, in ``order``, all after
    ``limit``.
    """

    name: Literal["minicode", "rstar_coder", "rows"]
    """``rstar_coder`` has fixed columns; ``rows`` is any parquet, JSONL or JSON file;
    ``minicode`` is procedural."""
    path: str | None = None
    """Local folder or file, or Hub id. minicode has none."""
    revision: str | None = None
    """Commit of the Hub repository."""
    columns: ColumnsConfig | None = None
    """Columns of ``rows``; null takes the text and the starter code from columns with usual names."""
    only_passed: bool = False
    """Drop rows that did not pass."""
    deduplicate: bool = True
    """Drop problems whose text is equal up to white space."""
    near_duplicates: float | None = None
    """Drop problems with at least this estimated Jaccard similarity of word 5-grams; null drops none."""
    order: Literal["source", "shuffled"] = "source"
    """Order of the problems."""
    limit: int | None = None
    """Number of problems to use; null uses all."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", fix="leave it out to use every problem")
        require_key(self, "path", self.name == "minicode" or self.path is not None, fix="set problems.path=FOLDER",
                    rule=f"problems={self.name} has no default path")  # fmt: skip
        require(self.columns is None or self.name == "rows", f"columns = {self.columns and list(self.columns.names)}",
                rule="is only for problems=rows", fix="leave it out, or set problems=rows")  # fmt: skip
        require_key(self, "near_duplicates", self.near_duplicates is None or 0 < self.near_duplicates <= 1,
                    rule="must be above 0 and at most 1",
                    fix="0.8 is a usual value; null removes exact duplicates only")  # fmt: skip
        passed = self.name == "rstar_coder" or (self.columns is not None and self.columns.passed is not None)
        require_key(self, "only_passed", not self.only_passed or passed,
                    rule="needs a column that says whether a row passed",
                    fix="name it in problems.columns.passed, or set problems.only_passed=false")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluationSetConfig:
    """A data set whose problems must not be trained on."""

    path: str | None = None
    """File, folder or Hub id."""
    columns: tuple[str, ...] = ()
    """Columns whose texts, joined, are a problem."""
    id: str | None = None
    """Column of the problem's id; null names a problem after its row."""

    def __post_init__(self) -> None:
        require_key(self, "path", self.path is not None, rule="this set has no default path",
                    fix="set it to a file, a folder or a Hub id")  # fmt: skip
        require_key(self, "columns", bool(self.columns), rule="must name the columns that hold a problem's text",
                    fix="set it, for example to [prompt]")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig:
    """Decontamination of training problems. The run's own benchmarks are always evaluation sets.

    A training problem is a hit if its text equals an evaluation problem's, or if the two share at least ``overlap`` of
    the word n-grams of the shorter one, apart from white space, case and the names of functions and arguments.
    """

    sets: dict[str, EvaluationSetConfig] = field(default_factory=dict)
    """Evaluation sets by name."""
    ngram: int = 8
    """Words per n-gram."""
    overlap: float = 0.5
    """Least fraction of shared n-grams."""
    max_hits: int = 0
    """Number of hits that are tolerated."""
    on_hit: Literal["refuse", "drop", "keep"] = "refuse"
    """If there are more: ``refuse`` stops the run, ``drop`` drops and counts them, ``keep`` only reports them."""

    def __post_init__(self) -> None:
        require_positive(self, "ngram", fix="use 8")
        require_key(self, "overlap", 0 < self.overlap <= 1, rule="must be above 0 and at most 1", fix="use 0.5")
        require_key(self, "max_hits", self.max_hits >= 0, rule="must not be negative", fix="0 refuses the first hit")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSetConfig:
    """One benchmark."""

    format: BenchmarkFormat
    """Format of its file."""
    path: str | None = None
    """Local file; for LiveCodeBench also a folder or Hub id. Null downloads the published file of HumanEval,
    HumanEval+, MBPP or MBPP+. minicode has none."""
    revision: str | None = None
    """LiveCodeBench: commit of the Hub repository."""
    limit: int | None = None
    """Number of problems to use; null uses all."""
    split: Literal["test", "all"] = "test"
    """MBPP: ``test`` are tasks 11 to 510, on which published numbers are measured; ``all`` are those of the file."""
    start_date: str | None = None
    """First contest date (ISO) of the window; only LiveCodeBench has dates."""
    end_date: str | None = None
    """Last contest date (ISO) of the window."""
    errata: ErrataChoice = "keep"
    """``keep`` counts the flawed problems that LiveCodeBench's authors name. ``drop`` leaves them out of the
    problems that ``limit`` selects."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", fix="leave it out to use every problem")
        require_key(self, "path", self.format != "livecodebench" or self.path is not None,
                    rule="livecodebench has no default path", fix="set it to a file, a folder or a Hub id")  # fmt: skip
        require_key(self, "path", self.format != "minicode" or self.path is None, fix="leave it out",
                    rule="minicode is made from its seed, not read from a file")  # fmt: skip
        for name, owner in (("revision", "livecodebench"), ("start_date", "livecodebench"),
                            ("end_date", "livecodebench"), ("errata", "livecodebench"), ("split", "mbpp")):  # fmt: skip
            is_default = getattr(self, name) == getattr(BenchmarkSetConfig, name)
            require_key(self, name, is_default or self.format == owner, fix="leave it out",
                        rule=f"is for {owner}, and this is {self.format}")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Evaluation problems: one benchmark, or several side by side."""

    sets: dict[str, BenchmarkSetConfig] = field(default_factory=dict)
    """Benchmarks by name. The results of each are in ``eval/NAME``."""

    def __post_init__(self) -> None:
        require_key(self, "sets", bool(self.sets), rule="must hold at least one benchmark",
                    fix="choose one with benchmark=NAME, or several with benchmark=[NAME,NAME]")  # fmt: skip
        for name in self.sets:
            require(_FOLDER_NAME.fullmatch(name) is not None, f"benchmark.sets.{name}",
                    rule="the name of a benchmark is also that of a folder",
                    fix="use letters, digits, underscores, dots and dashes, with a letter or digit first")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MinicodeConfig:
    """Size, seed and noise of the minicode world, see ``docs/results/minicode.md``."""

    seed: int = 0
    """Seed of the world."""
    num_train_problems: int = 4000
    """Training problems."""
    num_test_problems: int = 300
    """Evaluation problems."""
    num_documents: int = 42_000
    """Documents of the base model's corpus, about 58 tokens each."""
    vocab_size: int = 512
    """Size of the tokenizer's vocabulary."""
    tests_per_problem: int = 10
    """Tests per problem."""
    noise: float = 1.0
    """Scale of the errors in the corpus; 0 is a corpus without errors."""

    def of_problems(self, split: Literal["train", "test"]) -> dict[str, Any]:
        """The keys that decide the training or test problems."""
        return {key: getattr(self, key) for key in ("seed", f"num_{split}_problems", "tests_per_problem")}

    def of_corpus(self) -> dict[str, Any]:
        """The keys that decide the corpus and its tokenizer."""
        return {key: getattr(self, key) for key in ("seed", "num_documents", "vocab_size", "noise")}

    def __post_init__(self) -> None:
        counts = ("num_train_problems", "num_test_problems", "num_documents", "tests_per_problem")
        require_positive(self, *counts, fix="use at least 1")
        require_key(self, "noise", 0 <= self.noise <= 2, rule="must be between 0 and 2",
                    fix="use 1, or 0 for a corpus without errors")  # fmt: skip
