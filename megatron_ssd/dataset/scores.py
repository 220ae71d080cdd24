"""Scores of samples under a smaller model: run_dir/scores, read for the first pass.

The folder is a published stage: ``*.jsonl`` with ``problem_id``, ``sample_index`` and ``mean_logprob`` (of the
response's tokens, natural logarithm; null where there is none) a line, in any order, and its manifest. Other fields
are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.artifacts.manifest import Manifest, read_manifest
from megatron_ssd.artifacts.samples import SAMPLES, SCORES, samples_manifest
from megatron_ssd.dataset.complete import key_digest
from megatron_ssd.errors import UserError
from megatron_ssd.schema import Sample


@dataclass(frozen=True)
class Scores:
    """Scores by sample, in twelve bytes each.

    Attributes:
        keys: hashes of (problem id, sample index), ascending, [num_scores].
        values: the mean log-probability of each, [num_scores].
    """

    keys: NDArray[np.uint64]
    values: NDArray[np.float32]

    def of(self, sample: Sample) -> float:
        """The score of ``sample``; NaN where it has none."""
        key = np.uint64(key_digest(*sample.key))
        place = int(np.searchsorted(self.keys, key))
        return float(self.values[place]) if place < len(self.keys) and self.keys[place] == key else float("nan")


def scores_manifest(run_dir: Path) -> Manifest:
    """The manifest of ``run_dir``'s scores. Raises ``UserError`` where there are none, or they are of other samples."""
    folder = run_dir / SCORES
    if not (folder / "manifest.json").is_file():
        raise UserError(
            "filters.proxy_band",
            rule=f"needs the scores of a smaller model and there is no {folder}",
            fix="run launch/score.py with proxy.path=SMALLER_MODEL, or set filters.proxy_band=null",
        )
    manifest = read_manifest(folder)
    scored = manifest.inputs.get(SAMPLES)  # scores from elsewhere need not say
    if scored is not None and scored != samples_manifest(run_dir).content_hash:
        raise UserError(
            f"folder {folder}",
            rule=f"scores other samples than those in {run_dir / SAMPLES}",
            fix="run launch/score.py again with replace=true",
        )
    return manifest


def read_scores(run_dir: Path) -> Scores:
    """The scores of ``run_dir``.

    Raises:
        UserError: there are none, or a line is no score.
    """
    outputs = [run_dir / SCORES / output["path"] for output in scores_manifest(run_dir).outputs]
    rows = list(_rows([path for path in outputs if path.suffix == ".jsonl"]))
    if not any(value == value for _, value in rows):
        raise UserError(f"folder {run_dir / SCORES}", rule="holds no score, and filters.proxy_band needs them",
                        fix="score the samples again, or set filters.proxy_band=null")  # fmt: skip
    table = np.array(rows, dtype=[("key", "<u8"), ("value", "<f4")])
    table = table[np.argsort(table["key"], kind="stable")]
    return Scores(np.ascontiguousarray(table["key"]), np.ascontiguousarray(table["value"]))


def _rows(paths: list[Path]) -> Iterator[tuple[int, float]]:
    for path in paths:
        for number, row in enumerate(iter_jsonl(path), start=1):
            try:
                value = row["mean_logprob"]
                yield (
                    key_digest(row["problem_id"], row["sample_index"]),
                    float("nan") if value is None else float(value),
                )
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path}:{number}",
                    rule=f"is no score of a sample ({type(error).__name__}: {error})",
                    fix="each line has problem_id, sample_index and mean_logprob, a number or null",
                ) from None
