"""Problem settings: training problems, decontamination, the benchmark, the minicode world."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_ssd.errors import require

ErrataChoice = Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Which column of a data set holds what; null where it has none.

    Without ``id`` a problem is named after its row. Without ``starter_code`` every problem is a program on standard
    input. ``passed`` holds a truth value.
    """

    statement: str
    id: str | None = None
    starter_code: str | None = None
    passed: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(name for name in (self.id, self.statement, self.starter_code, self.passed) if name is not None)


@dataclass(frozen=True, kw_only=True)
class ProblemsConfig:
    """Training problems. ``path`` is a local folder or file, or a Hub id; minicode is procedural and has none.

    ``rstar_coder`` knows its columns; ``rows`` is any parquet, JSONL or JSON file with ``formatting`` given. Rows are
    dropped in this order: not passed (``only_passed``), no text, duplicates, near duplicates (estimated Jaccard
    similarity of word 5-grams of at least ``near_duplicates``), and, in ``order``, all after ``limit``.
    """

    name: Literal["minicode", "rstar_coder", "rows"]
    path: str | None = None
    revision: str | None = None  # of the Hub repository
    columns: ColumnsConfig | None = None
    only_passed: bool = False
    deduplicate: bool = True  # exact, on white-space-normalised text
    near_duplicates: float | None = None
    order: Literal["source", "shuffled"] = "source"
    limit: int | None = None  # after deduplication

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, f"problems.limit = {self.limit}", rule="must be positive",
                fix="leave it out to use every problem")  # fmt: skip
        require(self.name == "minicode" or self.path is not None, "problems.path = null",
                rule=f"problems={self.name} reads rows from somewhere", fix="set problems.path=FOLDER")  # fmt: skip
        columns = "null" if self.columns is None else list(self.columns.names)
        require((self.name == "rows") == (self.columns is not None), f"problems.columns = {columns}",
                rule="goes with problems=rows, which cannot do without",
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
    """A set whose problems must not be trained on: the texts of ``formatting``, joined, in the files at ``path``.

    ``id`` is the column that names a problem; without one it is known by its row.
    """

    path: str | None = None
    columns: tuple[str, ...] = ()
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig:
    """The gate between training problems and evaluation sets; the run's own benchmark is always one of them.

    A training problem is a hit where its text equals an evaluation problem's, or the two share at least ``overlap`` of
    the word ``ngram``-grams of the shorter one, white space, case and the names of functions and arguments aside. More
    than ``max_hits`` of them stop the run (``refuse``), or they are dropped and counted (``drop``), or only reported
    (``keep``). ``sets`` go by name.
    """

    sets: dict[str, EvaluationSetConfig] = field(default_factory=dict)
    ngram: int = 8
    overlap: float = 0.5
    max_hits: int = 0
    on_hit: Literal["refuse", "drop", "keep"] = "refuse"

    def __post_init__(self) -> None:
        require(self.ngram > 0, f"contamination.ngram = {self.ngram}", rule="must be at least 1", fix="use 8")
        require(0 < self.overlap <= 1, f"contamination.overlap = {self.overlap}",
                rule="must be above 0 and at most 1", fix="use 0.5")  # fmt: skip
        for name, one in self.sets.items():
            key = f"contamination.sets.{name}"
            require(one.path is not None, f"{key}.path = null", rule="this set is read from somewhere",
                    fix=f"set {key}.path to a file, a folder or a Hub id")  # fmt: skip
            require(bool(one.columns), f"{key}.columns = []", rule="must name the columns that hold a problem's text",
                    fix=f"set {key}.columns, for example to [prompt]")  # fmt: skip
        require(self.max_hits >= 0, f"contamination.max_hits = {self.max_hits}", rule="must not be negative",
                fix="0 refuses at the first")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Evaluation problems. ``start_date`` and ``end_date`` (ISO, both included) cut a window by contest date.

    ``errata``: whether the flawed problems that LiveCodeBench's authors name count; ``drop`` leaves them out of what
    ``limit`` has taken.
    """

    name: Literal["minicode", "livecodebench"]
    path: str | None = None
    limit: int | None = None
    start_date: str | None = None
    end_date: str | None = None
    errata: ErrataChoice = "keep"

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, f"benchmark.limit = {self.limit}", rule="must be positive",
                fix="leave it out to use every problem")  # fmt: skip
        require(self.name == "minicode" or self.path is not None, "benchmark.path = null",
                rule=f"benchmark={self.name} reads rows from somewhere", fix="set benchmark.path=FILE")  # fmt: skip
        require(self.errata == "keep" or self.name == "livecodebench", f"benchmark.errata = {self.errata}",
                rule=f"LiveCodeBench has errata, and this is {self.name}", fix="leave it out")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MinicodeConfig:
    """Size, seed and noise of the world. See ``docs/results/minicode.md``."""

    seed: int = 0
    num_train_problems: int = 4000
    num_test_problems: int = 300
    num_documents: int = 42_000  # of the base model's corpus, about 58 tokens each
    vocab_size: int = 512
    tests_per_problem: int = 10
    noise: float = 1.0  # scale of the distractor process at locks; 0 for none

    def __post_init__(self) -> None:
        for key in ("num_train_problems", "num_test_problems", "num_documents", "tests_per_problem"):
            value = getattr(self, key)
            require(value > 0, f"minicode.{key} = {value}", rule="must be at least 1", fix="use a positive number")
        require(0 <= self.noise <= 2, f"minicode.noise = {self.noise}", rule="must be between 0 and 2",
                fix="use 1, or 0 for a corpus without slips")  # fmt: skip
