"""Reads how training problems were selected, and the evaluation problems that were found among them."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import Manifest
from megatron_ssd.problems import decontamination
from megatron_ssd.problems.decontamination import HITS_FILE

SHOWN_HITS = 20  # on the page; summary.json has LISTED_HITS, and the stage's own file has all
LISTED_HITS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit(decontamination.Hit):
    """A training problem found in an evaluation set; ``kept`` if it was sampled nevertheless."""

    kept: bool


@dataclass(frozen=True, kw_only=True)
class SetHits:
    """The number of training problems found in one evaluation set: sampled nevertheless, or left out."""

    name: str
    kept: int
    left_out: int


@dataclass(frozen=True, kw_only=True)
class ProblemFacts:
    """The problems stage. ``selection`` is a line that identifies it, ``dropped`` counts rows by reason.

    ``hits`` are at most ``LISTED_HITS`` of ``num_hits``: first those that were kept, then the most certain ones.
    """

    selection: str
    num_rows: int
    num_problems: int
    dropped: dict[str, int]
    sets: tuple[SetHits, ...]
    hits: tuple[Hit, ...]
    num_hits: int


def read_problem_facts(folder: Path, manifest: Manifest) -> ProblemFacts:
    """The facts of a published ``problems`` folder. Raises ``UserError`` if its hits cannot be read."""
    hits = [_hit(row) for row in iter_jsonl(folder / HITS_FILE)]
    found: defaultdict[tuple[str, bool], set[str]] = defaultdict(set)
    for hit in hits:
        found[hit.set_name, hit.kept].add(hit.problem_id)
    return ProblemFacts(
        selection=manifest.facts["selection"],
        num_rows=manifest.counts["rows"],
        num_problems=manifest.counts["problems"],
        dropped=manifest.dropped,
        sets=tuple(
            SetHits(name=name, kept=len(found[name, True]), left_out=len(found[name, False]))
            for name in manifest.facts["evaluation_sets"]
        ),
        hits=tuple(heapq.nsmallest(LISTED_HITS, hits, key=lambda hit: (not hit.kept, not hit.exact, -hit.overlap))),
        num_hits=len(hits),
    )


def _hit(row: dict[str, Any]) -> Hit:
    return Hit(**{name: row[name] for name in Hit.__dataclass_fields__})
