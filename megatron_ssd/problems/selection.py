"""Which rows of a source are sampled: drops, order and limit, with a record of every row that is not.

A row is kept or dropped for the first of these reasons: ``not_passed``, ``no_text``, ``bad_text`` (NUL, or half of a
surrogate pair: no tokenizer takes it as it is), ``duplicate``, ``near_duplicate``, ``contaminated``, ``over_limit``.

Rows stream through. What stays in memory is a digest, a row number and a file offset for each kept row (and a MinHash
signature of 1 KiB where near duplicates are looked for), never the texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.config.problems import ProblemsConfig
from megatron_ssd.schema import Problem

PROBLEMS_FILE, DROPPED_FILE = "problems.jsonl", "dropped.jsonl"
_DIGEST_BYTES = 16  # half of SHA-256: two of a million texts agree by chance once in 10^26 runs
_NUM_PERMUTATIONS = 128
_SHINGLE_WORDS = 5
_UNREADABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of a source as a problem; ``passed`` is None where the source does not say."""

    problem: Problem
    passed: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What became of a source's rows. ``digest`` is over the kept texts in order: two equal ones mean equal prompts."""

    rows: int
    kept: int
    dropped: dict[str, int]
    digest: str


@dataclass(frozen=True, slots=True)
class _Kept:
    digest: bytes  # of the normalised text
    offset: int  # of its line in the spool
    row: int
    id: str


def select(
    candidates: Iterable[Candidate],
    section: ProblemsConfig,
    *,
    seed: int,
    is_contaminated: Callable[[Problem], bool],
    folder: Path,
) -> Selection:
    """Write ``problems.jsonl``, the kept problems in order, and ``dropped.jsonl``, the others with their reasons.

    Ids are made unique among the kept: a repeated one gets ``#2``, ``#3``, ... in order of appearance. Tests are not
    written: sampling has no use for them.

    Args:
        candidates: every row of the source, in file order.
        section: what to drop, the order and the limit.
        seed: of the shuffled order, which goes by text and seed and not by place in the file.
        is_contaminated: asked last, of what is otherwise kept; true drops it.
        folder: what an earlier, unfinished start left there is written again.
    """
    spool, dropped_path = folder / ".kept.jsonl", folder / f".{DROPPED_FILE}"
    for path in (spool, dropped_path):
        path.unlink(missing_ok=True)
    reasons = _Reasons(section, is_contaminated)
    kept: list[_Kept] = []
    rows = 0
    with JsonlWriter(dropped_path) as dropped, spool.open("wb") as texts:
        for rows, candidate in enumerate(candidates, start=1):
            digest = text_digest(candidate.problem.statement)
            reason = reasons.of(candidate, digest, row=rows)
            if reason is not None:
                dropped.write({"row": rows, "id": candidate.problem.id, **reason})
                continue
            problem = dataclasses.replace(candidate.problem, id=reasons.unique_id(candidate.problem.id), tests=())
            kept.append(_Kept(digest, texts.tell(), rows, problem.id))
            texts.write(json.dumps(problem.to_json(), ensure_ascii=False).encode() + b"\n")
        chosen, rest = _in_order(kept, section, seed)
        for one in rest:
            dropped.write({"row": one.row, "id": one.id, "reason": "over_limit"})
    _copy_lines(spool, folder / PROBLEMS_FILE, [one.offset for one in chosen])
    spool.unlink()
    dropped_path.replace(folder / DROPPED_FILE)
    counts = reasons.counts + Counter(over_limit=len(rest))
    return Selection(
        rows=rows,
        kept=len(chosen),
        dropped=dict(counts),
        digest=hashlib.sha256(b"".join(one.digest for one in chosen)).hexdigest(),
    )


def normalise(text: str) -> str:
    """``text`` with every run of white space (Unicode included) as one space, and none at the ends."""
    return " ".join(text.split())


def text_digest(statement: str) -> bytes:
    """What a text is known by: equal for texts that differ in white space alone."""
    return hashlib.sha256(normalise(statement).encode("utf-8", "surrogatepass")).digest()[:_DIGEST_BYTES]


class _Reasons:
    """Decides on one row after the other, and remembers what it needs of those that it kept."""

    def __init__(self, section: ProblemsConfig, is_contaminated: Callable[[Problem], bool]) -> None:
        self._section = section
        self._is_contaminated = is_contaminated
        self._row_of: dict[bytes, int] = {}
        self._near = _NearDuplicates(section.near_duplicates) if section.near_duplicates is not None else None
        self._times_seen: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def of(self, candidate: Candidate, digest: bytes, *, row: int) -> dict[str, Any] | None:
        """Why the row goes, as ``reason`` and, for duplicates, ``like``, the row that stays; None where it is kept."""
        reason = self._reason(candidate, digest, row)
        if reason is not None:
            self.counts[reason["reason"]] += 1
        return reason

    def _reason(self, candidate: Candidate, digest: bytes, row: int) -> dict[str, Any] | None:
        problem = candidate.problem
        if self._section.only_passed and not candidate.passed:
            return {"reason": "not_passed"}
        if not problem.statement.strip():
            return {"reason": "no_text"}
        if _UNREADABLE.search(problem.statement) or _UNREADABLE.search(problem.starter_code):
            return {"reason": "bad_text"}
        if self._section.deduplicate and digest in self._row_of:
            return {"reason": "duplicate", "like": self._row_of[digest]}
        if self._near is not None and (like := self._near.find(problem.statement)) is not None:
            return {"reason": "near_duplicate", "like": like}
        self._row_of.setdefault(digest, row)
        if self._near is not None:
            self._near.add(problem.statement, row)
        return {"reason": "contaminated"} if self._is_contaminated(problem) else None

    def unique_id(self, id_: str) -> str:
        """``id_``, numbered where a kept problem has it already."""
        self._times_seen[id_] += 1
        count = self._times_seen[id_]
        return id_ if count == 1 else f"{id_}#{count}"


class _NearDuplicates:
    """Kept texts by the words that they share (MinHash with locality-sensitive hashing, datasketch)."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH  # takes scipy, which takes a second

        self._threshold = threshold
        self._index: Any = MinHashLSH(threshold=threshold, num_perm=_NUM_PERMUTATIONS)
        self._signatures: dict[int, Any] = {}

    def find(self, text: str) -> int | None:
        """Row of the first kept text whose estimated similarity reaches the threshold."""
        signature = self._signature(text)
        near = (row for row in self._index.query(signature)
                if self._signatures[row].jaccard(signature) >= self._threshold)  # fmt: skip
        return min(near, default=None)

    def add(self, text: str, row: int) -> None:
        """Remember a kept text."""
        self._signatures[row] = self._signature(text)
        self._index.insert(row, self._signatures[row])

    @staticmethod
    def _signature(text: str) -> Any:
        from datasketch import MinHash

        words = re.findall(r"\w+", text.lower())
        shingles = {
            " ".join(words[i : i + _SHINGLE_WORDS]) for i in range(max(1, len(words) - _SHINGLE_WORDS + 1))
        }  # fmt: skip
        signature = MinHash(num_perm=_NUM_PERMUTATIONS)
        signature.update_batch([shingle.encode() for shingle in shingles])
        return signature


def _in_order(kept: list[_Kept], section: ProblemsConfig, seed: int) -> tuple[list[_Kept], list[_Kept]]:
    """(chosen, over the limit), each in the order of the configuration."""
    if section.order == "shuffled":
        kept = sorted(kept, key=lambda one: hashlib.sha256(f"{seed}".encode() + one.digest + one.id.encode()).digest())
    limit = len(kept) if section.limit is None else section.limit
    return kept[:limit], kept[limit:]


def _copy_lines(source: Path, target: Path, offsets: list[int]) -> None:
    """Write the lines of ``source`` that begin at ``offsets``, in that order."""
    with source.open("rb") as lines, target.open("wb") as out:
        for offset in offsets:
            lines.seek(offset)
            out.write(lines.readline())
        out.flush()
        os.fsync(out.fileno())
