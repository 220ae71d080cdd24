"""Keeps what was measured on a GPU in one JSON file, which grows with every case.

The file has facts about the machine (device, versions, commit), and for each part a list of records. A record has the
name of its case and either measurements, ``passed``, or the reason why there are none: ``skipped`` or ``failed``.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.errors import require

Record = dict[str, Any]
ALL_TESTS = "all tests"  # the case that sums up a part of tests
_FACTS = ("device", "torch", "transformer_engine", "megatron_core", "commit")


class Results:
    """The file at ``path``. It is read again for every question, because tests write to it from their own process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def content(self) -> dict[str, Any]:
        """Everything in the file; empty if there is none yet."""
        return dict(json.loads(self._path.read_text(encoding="utf-8"))) if self._path.exists() else {}

    def records(self, part: str) -> list[Record]:
        """The records of ``part``, in the order of their first writing."""
        return list(self.content().get(part, []))

    def is_done(self, part: str, case: str) -> bool:
        """Whether the case has a record. One that failed counts as not done."""
        return any(record["case"] == case and "failed" not in record for record in self.records(part))

    def add(self, part: str, record: Record) -> None:
        """Write ``record``, in place of an earlier one of the same case."""
        content = self.content()
        kept = {one["case"]: one for one in content.get(part, [])}
        self._write({**content, part: list({**kept, record["case"]: record}.values())})

    def forget(self, parts: Collection[str]) -> None:
        """Remove the records of ``parts``."""
        self._write({key: value for key, value in self.content().items() if key not in parts})

    def describe(self, facts: dict[str, str]) -> None:
        """Write the facts about this machine. Raises ``UserError`` if the file is about another device."""
        content = self.content()
        earlier = content.get("device", facts["device"])
        require(earlier == facts["device"], f"--out {self._path.parent}",
                rule=f"has results of {earlier}, and this is {facts['device']}", fix="use another folder")  # fmt: skip
        self._write({**facts, **{key: value for key, value in content.items() if key not in facts}})

    def _write(self, content: dict[str, Any]) -> None:
        write_atomically(self._path, json.dumps(content, indent=1) + "\n")


def parts_in(content: dict[str, Any]) -> dict[str, list[Record]]:
    """The records of each part of a file's content."""
    return {key: value for key, value in content.items() if isinstance(value, list)}


def described(content: dict[str, Any]) -> str:
    """The facts about the machine, on one line."""
    names = {"transformer_engine": "TransformerEngine", "megatron_core": "Megatron-Core"}
    given = [key for key in _FACTS if key in content]
    return ", ".join(content[key] if key == "device" else f"{names.get(key, key)} {content[key]}" for key in given)


def outcome(record: Record) -> str | None:
    """Why a record has no measurements, or how many tests passed; None if it has measurements."""
    for key in ("failed", "skipped", "passed"):
        if key in record:
            return f"{key}: {record[key]}"
    return None


def gap(record: Record, others: list[Record]) -> tuple[float, float] | None:
    """Largest and last relative difference of the losses from those of the first run of the same model.

    Args:
        others: the records of the same part. The first one of a model has no difference.
    """
    model = record["case"].split()[0]
    first = next((one for one in others if one["case"].split()[0] == model and "losses" in one), record)
    pairs = list(zip(record.get("losses", ()), first.get("losses", ()), strict=False))
    if first["case"] == record["case"] or not pairs:
        return None
    gaps = [abs(ours - theirs) / max(abs(theirs), 1e-9) for ours, theirs in pairs]
    return max(gaps), gaps[-1]


def line(record: Record, others: list[Record]) -> str:
    """The record as one line of text; ``others`` as in ``gap``."""
    head = f"{record['case']:54s} "
    why = outcome(record)
    if why is not None:
        return head + why
    parts = [f"{record['tokens_per_second']:>10,.0f} tokens/s", f"{record['tflops']:7.1f} TFLOP/s"]
    if record["mfu"] is not None:
        parts.append(f"MFU {record['mfu']:.1%}")
    if record["peak_gb"] is not None:
        planned = f" (planned {record['predicted_gb']:.1f})" if "predicted_gb" in record else ""
        parts.append(f"peak {record['peak_gb']:.1f} GB{planned}")
    parts.append(f"loss {record['losses'][-1]:.4f}")
    apart = gap(record, others)
    if apart is not None:
        parts.append(f"(from the first: at most {apart[0]:.2%}, at the end {apart[1]:.2%})")
    return head + "  ".join(parts)
