"""Which rows of a source are sampled: drops, order and limit, with a record of every row that is not.

A row is kept or dropped for the first of these reasons: ``not_passed``, ``bad_text`` (NUL, or half of a
surrogate pair: no tokenizer takes it as it is), ``no_text`` (no letter and no digit), ``duplicate``,
``near_duplicate``, ``contaminated``, ``over_limit``.

Rows stream through. What stays in memory is a digest, a row number and a file offset for each kept row (and a MinHash
signature of 1 KiB where near duplicates are looked for), never the texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.config.problems import ProblemsConfig
from megatron_ssd.schema import Problem

PROBLEMS_FILE, DROPPED_FILE = "problems.jsonl", "dropped.jsonl"
_DIGEST_BYTES = 16  # half of SHA-256: two of a million texts agree by chance once in 10^26 runs
_NUM_PERMUTATIONS = 128
_SHINGLE_WORDS = 5
_UNREADABLE = re.compile("[\0\ud800-\udfff]")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of a source as a problem; ``passed`` is None where the source does not say."""

    problem: Problem
    passed: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What became of a source's rows.

    ``ids`` are the kept problems' in order; ``digest`` is over their texts and starter codes in order: two equal ones
    mean prompts that are equal, white space of the texts aside.
    """

    rows: int
    ids: tuple[str, ...]
    dropped: dict[str, int]
    digest: str


@dataclass(frozen=True, slots=True)
class _Kept:
    digest: bytes  # of the normalised text and the starter code
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

    Ids are made unique: one that another problem has already gets ``#2``, ``#3``, ... in order of appearance. Tests are
    not written: sampling has no use for them.

    Args:
        candidates: every row of the source, in file order.
        section: what to drop, the order and the limit.
        seed: of the shuffled order, which goes by text and seed and not by place in the file.
        is_contaminated: asked last, of what is otherwise kept, with its unique id; true drops it.
        folder: what an earlier, unfinished start left there is written again.
    """
    spool, dropped_path = folder / ".kept.jsonl", folder / f".{DROPPED_FILE}"
    reasons = _Reasons(section)
    ids = _UniqueIds()
    kept: list[_Kept] = []
    counts: Counter[str] = Counter()
    rows = offset = 0
    with dropped_path.open("wb") as dropped, spool.open("wb") as texts:
        for rows, candidate in enumerate(candidates, start=1):
            digest = text_digest(candidate.problem.statement)
            reason = reasons.of(candidate, digest, row=rows)
            problem = candidate.problem
            if reason is None:
                unique = ids.of(problem.id)
                if problem.tests or unique != problem.id:
                    problem = dataclasses.replace(problem, id=unique, tests=())
                reason = {"reason": "contaminated"} if is_contaminated(problem) else None
            if reason is not None:
                counts[reason["reason"]] += 1
                dropped.write(json_line({"row": rows, "id": problem.id, **reason}))
                continue
            kept.append(_Kept(_prompt_digest(problem, digest), offset, rows, problem.id))
            offset += texts.write(json_line(problem.to_json()))
        chosen, rest = _in_order(kept, section, seed)
        counts.update(over_limit=len(rest))
        for one in rest:
            dropped.write(json_line({"row": one.row, "id": one.id, "reason": "over_limit"}))
    if len(chosen) == len(kept) and section.order == "source":
        spool.replace(folder / PROBLEMS_FILE)
    else:
        _copy_lines(spool, folder / PROBLEMS_FILE, [one.offset for one in chosen])
        spool.unlink()
    dropped_path.replace(folder / DROPPED_FILE)
    return Selection(
        rows=rows,
        ids=tuple(one.id for one in chosen),
        dropped=dict(+counts),
        digest=hashlib.sha256(b"".join(one.digest for one in chosen)).hexdigest(),
    )


def normalise(text: str) -> str:
    """``text`` with every run of white space (Unicode included) as one space, and none at the ends."""
    return " ".join(text.split())


def json_line(row: dict[str, Any]) -> bytes:
    """A row of a JSONL file that is written in one go and not resumed."""
    return _encode(row).encode("utf-8", "surrogatepass") + b"\n"


def text_digest(statement: str) -> bytes:
    """What a text is known by: equal for texts that differ in white space alone."""
    return hashlib.sha256(normalise(statement).encode("utf-8", "surrogatepass")).digest()[:_DIGEST_BYTES]


def _prompt_digest(problem: Problem, text: bytes) -> bytes:
    """What a prompt is known by, given the digest of its text."""
    if not problem.starter_code:
        return text
    return hashlib.sha256(text + problem.starter_code.encode()).digest()[:_DIGEST_BYTES]


class _UniqueIds:
    """Numbers ids that come again; a numbered one may be another problem's own, so it is looked up as well."""

    def __init__(self) -> None:
        self._times_seen: dict[str, int] = {}

    def of(self, id_: str) -> str:
        """``id_``, or ``id_#N`` with the first number that makes it new."""
        if id_ not in self._times_seen:
            self._times_seen[id_] = 1
            return id_
        number = self._times_seen[id_] + 1
        while (unique := f"{id_}#{number}") in self._times_seen:
            number += 1
        self._times_seen[id_], self._times_seen[unique] = number, 1
        return unique


class _Reasons:
    """Decides on one row after the other, and remembers what it needs of those that it kept."""

    def __init__(self, section: ProblemsConfig) -> None:
        self._section = section
        self._row_of: dict[bytes, int] = {}
        self._near = _NearDuplicates(section.near_duplicates) if section.near_duplicates is not None else None

    def of(self, candidate: Candidate, digest: bytes, *, row: int) -> dict[str, Any] | None:
        """Why the row goes, as ``reason`` and, for duplicates, ``like``, the row that stays; None where it is kept."""
        problem = candidate.problem
        if self._section.only_passed and not candidate.passed:
            return {"reason": "not_passed"}
        if any(map(_UNREADABLE.search, (problem.statement, problem.starter_code, problem.id))):
            return {"reason": "bad_text"}
        if not _LETTER_OR_DIGIT.search(problem.statement):
            return {"reason": "no_text"}
        if self._section.deduplicate and digest in self._row_of:
            return {"reason": "duplicate", "like": self._row_of[digest]}
        if self._near is not None and (like := self._near.find_or_add(problem.statement, row)) is not None:
            return {"reason": "near_duplicate", "like": like}
        if self._section.deduplicate:
            self._row_of[digest] = row
        return None


class _NearDuplicates:
    """Kept texts by the words that they share (MinHash with locality-sensitive hashing, datasketch)."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH  # takes scipy, which takes a second

        self._threshold = threshold
        self._index: Any = MinHashLSH(threshold=threshold, num_perm=_NUM_PERMUTATIONS)
        self._signatures: dict[int, Any] = {}

    def find_or_add(self, text: str, row: int) -> int | None:
        """Row of the first kept text whose estimated similarity reaches the threshold; else None, and it is kept."""
        signature = self._signature(text)
        near = (row for row in self._index.query(signature)
                if self._signatures[row].jaccard(signature) >= self._threshold)  # fmt: skip
        first: int | None = min(near, default=None)
        if first is not None:
            return first
        self._signatures[row] = signature
        self._index.insert(row, signature, check_duplication=False)
        return None

    @staticmethod
    def _signature(text: str) -> Any:
        from datasketch import MinHash

        words = re.findall(r"\w+", text.lower())
        shingles = {
            " ".join(words[i : i + _SHINGLE_WORDS]) for i in range(max(1, len(words) - _SHINGLE_WORDS + 1))
        }  # fmt: skip
        signature = MinHash(num_perm=_NUM_PERMUTATIONS, hashfunc=zlib.crc32)  # a tenth of the time of SHA-1
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
