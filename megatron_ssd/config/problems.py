"""Settings of problems: training problems, decontamination, benchmarks, the minicode world."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

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
    """``rstar_coder`` has fixed columns; ``rows`` is any parquet, JSONL or JSON file with ``columns`` set;
    ``minicode`` is procedural."""
    path: str | None = None
    """Local folder or file, or Hub id. minicode has none."""
    revision: str | None = None
    """Commit of the Hub repository."""
    columns: ColumnsConfig | None = None
    """Columns of ``rows``."""
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
        require(self.limit is None or self.limit > 0, f"problems.limit = {self.limit}", rule="must be positive",
                fix="leave it out to use every problem")  # fmt: skip
        require(self.name == "minicode" or self.path is not None, "problems.path = null",
                rule=f"problems={self.name} has no default path", fix="set problems.path=FOLDER")  # fmt: skip
        columns = "null" if self.columns is None else list(self.columns.names)
        require((self.name == "rows") == (self.columns is not None), f"problems.columns = {columns}",
                rule="is required by problems=rows and used by no other source",
                fix="set problems.columns.statement=COLUMN with problems=rows, and leave it out otherwise")  # fmt: skip
        require(self.near_duplicates is None or 0 < self.near_duplicates <= 1,
                f"problems.near_duplicates = {self.near_duplicates}", rule="must be above 0 and at most 1",
                fix="0.8 is a usual value; null removes exact duplicates only")  # fmt: skip
        passed = self.name == "rstar_coder" or (self.columns is not None and self.columns.passed is not None)
        require(not self.only_passed or passed, "problems.only_passed = true",
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
        require(self.ngram > 0, f"contamination.ngram = {self.ngram}", rule="must be at least 1", fix="use 8")
        require(0 < self.overlap <= 1, f"contamination.overlap = {self.overlap}",
                rule="must be above 0 and at most 1", fix="use 0.5")  # fmt: skip
        for name, one in self.sets.items():
            key = f"contamination.sets.{name}"
            require(one.path is not None, f"{key}.path = null", rule="this set has no default path",
                    fix=f"set {key}.path to a file, a folder or a Hub id")  # fmt: skip
            require(bool(one.columns), f"{key}.columns = []", rule="must name the columns that hold a problem's text",
                    fix=f"set {key}.columns, for example to [prompt]")  # fmt: skip
        require(self.max_hits >= 0, f"contamination.max_hits = {self.max_hits}", rule="must not be negative",
                fix="0 refuses the first hit")  # fmt: skip


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

    def check(self, key: str) -> None:
        """Raise ``ConfigError`` for a value that does not fit the format; ``key`` names this section."""
        require(self.limit is None or self.limit > 0, f"{key}.limit = {self.limit}", rule="must be positive",
                fix="leave it out to use every problem")  # fmt: skip
        require(self.format != "livecodebench" or self.path is not None, f"{key}.path = null",
                rule="livecodebench has no default path", fix=f"set {key}.path=FILE")  # fmt: skip
        require(self.format != "minicode" or self.path is None, f"{key}.path = {self.path}",
                rule="minicode is made from its seed, not read from a file", fix="leave it out")  # fmt: skip
        for name, owner in (("revision", "livecodebench"), ("start_date", "livecodebench"),
                            ("end_date", "livecodebench"), ("errata", "livecodebench"), ("split", "mbpp")):  # fmt: skip
            value = getattr(self, name)
            require(value == getattr(BenchmarkSetConfig, name) or self.format == owner, f"{key}.{name} = {value}",
                    rule=f"is for {owner}, and this is {self.format}", fix="leave it out")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Evaluation problems: one benchmark, or several side by side."""

    sets: dict[str, BenchmarkSetConfig] = field(default_factory=dict)
    """Benchmarks by name. The results of each are in ``eval/NAME``."""

    def __post_init__(self) -> None:
        require(bool(self.sets), "benchmark.sets = {}", rule="must hold at least one benchmark",
                fix="choose one with benchmark=NAME, or several with benchmark=[NAME,NAME]")  # fmt: skip
        for name, one in self.sets.items():
            require(_FOLDER_NAME.fullmatch(name) is not None, f"benchmark.sets.{name}",
                    rule="the name of a benchmark is also that of a folder",
                    fix="use letters, digits, underscores, dots and dashes, with a letter or digit first")  # fmt: skip
            one.check(f"benchmark.sets.{name}")


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
        for key in ("num_train_problems", "num_test_problems", "num_documents", "tests_per_problem"):
            value = getattr(self, key)
            require(value > 0, f"minicode.{key} = {value}", rule="must be at least 1", fix="use a positive number")
        require(0 <= self.noise <= 2, f"minicode.noise = {self.noise}", rule="must be between 0 and 2",
                fix="use 1, or 0 for a corpus without errors")  # fmt: skip
