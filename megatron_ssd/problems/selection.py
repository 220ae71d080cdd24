"""Selects the problems to sample from the rows of a source.

``dropped.jsonl`` records why each other row is dropped. It is the first of these reasons that applies: ``not_passed``,
``bad_text`` (NUL or half of a surrogate pair, which no tokenizer accepts), ``no_text`` (no letter and no digit),
``duplicate``, ``near_duplicate``, ``contaminated``, ``over_limit``.

Rows are streamed. Memory holds a digest, a row number and a file offset for each kept row (and what ``near_duplicates``
keeps of it), never the texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from megatron_ssd.config.problems import ProblemsConfig
from megatron_ssd.problems.near_duplicates import NearDuplicates
from megatron_ssd.schema import Problem

PROBLEMS_FILE, DROPPED_FILE = "problems.jsonl", "dropped.jsonl"
_DIGEST_BYTES = 16  # half of SHA-256: two of a million texts agree by chance once in 10^26 runs
_UNREADABLE = re.compile("[\0\ud800-\udfff]")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The result of a selection.

    ``ids`` are those of the kept problems, in order. ``digest`` hashes their texts and starter codes in order: equal
    digests mean equal prompts, except for white space in the texts.
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
    rows: Iterable[tuple[Problem, bool]],
    section: ProblemsConfig,
    *,
    seed: int,
    is_contaminated: Callable[[Problem], bool],
    folder: Path,
) -> Selection:
    """Write ``problems.jsonl``, the kept problems in order, and ``dropped.jsonl``, the others with their reasons.

    Ids are made unique: a repeated id gets ``#2``, ``#3``, ... in order of appearance. Tests are not written, since
    sampling does not use them.

    Args:
        rows: every row of the source in file order, as a problem and whether it passed.
        section: what to drop, the order and the limit.
        seed: of the shuffled order, which depends on text and seed and not on the position in the file.
        is_contaminated: called last, for each problem that is otherwise kept, with its unique id; true drops it.
        folder: files of an earlier, unfinished run in it are written again.
    """
    spool, dropped_path = folder / ".kept.jsonl", folder / f".{DROPPED_FILE}"
    reasons = _Reasons(section)
    times_seen: dict[str, int] = {}  # each id
    kept: list[_Kept] = []
    counts: Counter[str] = Counter()
    num_rows = offset = 0
    with dropped_path.open("wb") as dropped, spool.open("wb") as texts:
        for num_rows, (problem, passed) in enumerate(rows, start=1):
            digest = text_digest(problem.statement)
            reason = reasons.of(problem, digest, passed=passed, row=num_rows)
            if reason is None:
                unique = _unique(problem.id, times_seen)
                if problem.tests or unique != problem.id:
                    problem = replace(problem, id=unique, tests=())
                reason = {"reason": "contaminated"} if is_contaminated(problem) else None
            if reason is not None:
                counts[reason["reason"]] += 1
                dropped.write(json_line({"row": num_rows, "id": problem.id, **reason}))
                continue
            kept.append(_Kept(_prompt_digest(problem, digest), offset, num_rows, problem.id))
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
        rows=num_rows,
        ids=tuple(one.id for one in chosen),
        dropped=dict(+counts),
        digest=hashlib.sha256(b"".join(one.digest for one in chosen)).hexdigest(),
    )


def normalise(text: str) -> str:
    """``text`` with each run of white space (also Unicode) as one space, and none at the ends."""
    return " ".join(text.split())


def json_line(record: dict[str, Any]) -> bytes:
    """A record of a JSONL file that is written in one pass and never resumed."""
    return _encode(record).encode("utf-8", "surrogatepass") + b"\n"


def text_digest(statement: str) -> bytes:
    """The identity of a text: equal for texts that differ only in white space."""
    return hashlib.sha256(normalise(statement).encode("utf-8", "surrogatepass")).digest()[:_DIGEST_BYTES]


def _prompt_digest(problem: Problem, text: bytes) -> bytes:
    """The identity of a prompt, given the digest of its text."""
    if not problem.starter_code:
        return text
    return hashlib.sha256(text + problem.starter_code.encode()).digest()[:_DIGEST_BYTES]


def _unique(id_: str, times_seen: dict[str, int]) -> str:
    """``id_``, or ``id_#N`` with the first number that makes it unique. ``times_seen`` remembers both."""
    if id_ not in times_seen:
        times_seen[id_] = 1
        return id_
    number = times_seen[id_] + 1
    while (unique := f"{id_}#{number}") in times_seen:  # a numbered id may already be another problem's own
        number += 1
    times_seen[id_], times_seen[unique] = number, 1
    return unique


class _Reasons:
    """Finds the reason to drop a row, and remembers what this needs of the kept rows."""

    def __init__(self, section: ProblemsConfig) -> None:
        self._section = section
        self._row_of: dict[bytes, int] = {}
        self._near = NearDuplicates(section.near_duplicates) if section.near_duplicates is not None else None

    def of(self, problem: Problem, digest: bytes, *, passed: bool, row: int) -> dict[str, Any] | None:
        """Why a row is dropped: ``reason`` and, for duplicates, ``like``, the row that is kept. None if it is kept."""
        if not passed:
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


def _in_order(kept: list[_Kept], section: ProblemsConfig, seed: int) -> tuple[list[_Kept], list[_Kept]]:
    """The kept problems within the limit and those over it, each in the configured order."""
    if section.order == "shuffled":
        kept = sorted(kept, key=lambda one: hashlib.sha256(f"{seed}".encode() + one.digest + one.id.encode()).digest())
    limit = len(kept) if section.limit is None else section.limit
    return kept[:limit], kept[limit:]


def _copy_lines(source: Path, target: Path, offsets: list[int]) -> None:
    """Write the lines of ``source`` that start at ``offsets``, in that order."""
    with source.open("rb") as lines, target.open("wb") as out:
        for offset in offsets:
            lines.seek(offset)
            out.write(lines.readline())
