"""The preprocessing stage: run_dir/samples to run_dir/dataset.

Each shard of samples becomes a part of its own (``parts/NAME.bin``, ``.idx``, ``.ids.jsonl``, and ``.json`` written
last with its counts), and the parts are joined in order. A killed run redoes the shard that it was in and nothing else.
Ids are taken exactly as sampled: nothing is tokenized here, and no end token is added.

Output:
- ``samples.bin``, ``samples.idx``: one document a kept sample, [prompt, response];
- ``ids.jsonl``: line i names the sample of document i;
- ``counts.json``: what became of the samples, shard by shard.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from megatron_ssd.artifacts.jsonl import JsonlWriter, iter_jsonl
from megatron_ssd.artifacts.manifest import megatron_facts, read_manifest
from megatron_ssd.artifacts.stage import Stage, write_atomically
from megatron_ssd.config.dataset import FilterConfig
from megatron_ssd.config.model import ModelConfig
from megatron_ssd.config.run import RunConfig, needed
from megatron_ssd.dataset import filters
from megatron_ssd.dataset.indexed import IndexedWriter, join_indexed
from megatron_ssd.errors import UserError
from megatron_ssd.progress import progress
from megatron_ssd.schema import Sample

log = logging.getLogger(__name__)

DATASET_NAME = "samples"  # run_dir/dataset/samples.bin and .idx
_DROPPED = "dropped_"


def run_preprocess(config: RunConfig) -> None:
    """Filter the samples of ``config.run_dir`` and write them as Megatron's indexed data set.

    Raises:
        UserError: there are no samples, a line is no sample, an id is outside the model's vocabulary, or every sample
            was dropped.
    """
    stage = dataset_stage(config)
    if stage.is_current():
        return
    samples_dir = Path(config.run_dir) / "samples"
    samples = read_manifest(samples_dir)
    converter = _Converter(work=stage.begin(), filters=config.filters, vocab_size=_model(config).vocab_size)
    shards = [samples_dir / output["path"] for output in samples.outputs if Path(output["path"]).match("shard-*.jsonl")]
    if not converter.joined.exists():
        too_short = converter.too_short(shards)
        bar: tqdm[Sample] = progress(total=samples.counts.get("samples"), desc="preprocessing", unit="sample")
        with bar:
            for shard in shards:
                converter.convert(shard, too_short=too_short, count_row=bar.update)
                stage.note_time()
        converter.join(shards)
    shutil.rmtree(converter.parts, ignore_errors=True)
    counts, dropped = _totals(json.loads(converter.joined.read_text(encoding="utf-8")))
    log.info("dataset: kept %d of %d samples, dropped %s", counts["documents"], counts["samples"], dropped or "none")
    stage.publish(
        engine=megatron_facts(),
        counts=counts,
        dropped=dropped,
    )


def dataset_stage(config: RunConfig) -> Stage:
    """The stage as ``config`` identifies it: same samples and filters mean the same data set.

    Raises:
        UserError: no model is named, or there are no samples.
    """
    run_dir = Path(config.run_dir)
    return Stage(
        name="dataset",
        run_dir=run_dir,
        config={"filters": dataclasses.asdict(config.filters), "vocab_size": _model(config).vocab_size},
        inputs={"samples": read_manifest(run_dir / "samples").content_hash},
        replace=config.replace,
    )


def _model(config: RunConfig) -> ModelConfig:
    return needed(config.model, "model", fix="choose one: model=NAME")


def _totals(by_shard: dict[str, dict[str, int]]) -> tuple[dict[str, int], dict[str, int]]:
    """Sums over the shards: what was kept, and what was dropped by reason."""
    total: Counter[str] = Counter()
    for counts in by_shard.values():
        total.update(counts)
    dropped = {key.removeprefix(_DROPPED): count for key, count in total.items() if key.startswith(_DROPPED)}
    return {key: count for key, count in total.items() if not key.startswith(_DROPPED)}, dropped


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Converter:
    """Shards to parts to the data set, each unit of work marked as finished by a file written last."""

    work: Path
    filters: FilterConfig
    vocab_size: int

    @property
    def parts(self) -> Path:
        """Folder of the parts; gone when they are joined."""
        return self.work / "parts"

    @property
    def joined(self) -> Path:
        """Counts of each shard, written when the data set is whole."""
        return self.work / "counts.json"

    def part(self, shard: Path, ending: str) -> Path:
        """A file that belongs to ``shard`` among the parts."""
        return self.parts / f"{shard.stem}{ending}"

    def too_short(self, shards: list[Path]) -> dict[Path, NDArray[np.bool_]]:
        """For each shard, which of its rows are among the shortest fraction of all; empty where nobody asked.

        Keeps eight bytes a sample in memory, so that no threshold has to be guessed.
        """
        if not self.filters.drop_shortest_fraction:
            return {}
        lengths = [self._response_lengths(shard) for shard in shards]
        chosen = filters.shortest(np.concatenate(lengths), self.filters.drop_shortest_fraction)
        borders = np.cumsum([len(part) for part in lengths])[:-1]
        return dict(zip(shards, np.split(chosen, borders), strict=True))

    def _response_lengths(self, shard: Path) -> NDArray[np.int64]:
        """Characters of each response of ``shard``, -1 where another filter drops it. Kept for the next start."""
        saved = self.part(shard, ".lengths.npy")
        if not saved.exists():
            lengths = [
                -1 if filters.reason_to_drop(sample, self.filters) else len(sample.response)
                for sample in progress(_samples(shard), desc=f"measuring {shard.stem}", unit="sample")
            ]
            self.parts.mkdir(exist_ok=True)
            unfinished = saved.with_suffix(".tmp.npy")
            np.save(unfinished, np.array(lengths, dtype=np.int64))
            unfinished.replace(saved)
        loaded: NDArray[np.int64] = np.load(saved)
        return loaded

    def convert(
        self, shard: Path, *, too_short: dict[Path, NDArray[np.bool_]], count_row: Callable[[int], object]
    ) -> None:
        """Write the part of ``shard``, unless an earlier start finished it; ``count_row`` moves the progress bar."""
        finished = self.part(shard, ".json")
        if finished.exists():
            count_row(json.loads(finished.read_text(encoding="utf-8"))["samples"])
            return
        self.parts.mkdir(exist_ok=True)
        self.part(shard, ".ids.jsonl").unlink(missing_ok=True)  # what a killed start began
        counts: Counter[str] = Counter(samples=0, documents=0)
        writer = IndexedWriter(self.part(shard, ""), vocab_size=self.vocab_size)
        with writer, JsonlWriter(self.part(shard, ".ids.jsonl")) as ids:
            for row, sample in enumerate(_samples(shard)):
                counts["samples"] += 1
                count_row(1)
                reason = filters.reason_to_drop(sample, self.filters)
                if reason is None and too_short and too_short[shard][row]:
                    reason = filters.SHORTEST
                if reason is not None:
                    counts[_DROPPED + reason] += 1
                    continue
                writer.add(sample.prompt_token_ids, sample.response_token_ids)
                ids.write({"problem_id": sample.problem_id, "sample_index": sample.sample_index})
                counts.update(
                    documents=1,
                    prompt_tokens=len(sample.prompt_token_ids),
                    response_tokens=len(sample.response_token_ids),
                    length_capped=int(sample.finish_reason == "length"),
                )
        write_atomically(finished, json.dumps(counts))

    def join(self, shards: list[Path]) -> None:
        """Put the parts together in the order of the shards."""
        by_shard = {shard.stem: json.loads(self.part(shard, ".json").read_text(encoding="utf-8")) for shard in shards}
        if not any(counts["documents"] for counts in by_shard.values()):
            raise UserError(
                f"samples of {self.work.parent / 'samples'}",
                rule=f"the filters drop every one of them ({by_shard})",
                fix="look at the samples, or relax the filters section",
            )
        join_indexed([self.part(shard, "") for shard in shards], self.work / DATASET_NAME)
        ids = self.work / "ids.jsonl"
        ids.unlink(missing_ok=True)
        with ids.open("wb") as joined:
            for shard in shards:
                with self.part(shard, ".ids.jsonl").open("rb") as part:
                    shutil.copyfileobj(part, joined)
        write_atomically(self.joined, json.dumps(by_shard, indent=2) + "\n")


def _samples(shard: Path) -> Iterator[Sample]:
    for number, row in enumerate(iter_jsonl(shard), start=1):
        try:
            yield Sample.from_json(row)
        except UserError as error:
            raise UserError(f"{shard}:{number}", rule=error.rule, fix=error.fix) from None
