"""Decodes the benchmarks with one model under all its settings, with one start of the engine.

Each benchmark has a folder, and each setting has a file in it, ``LABEL.jsonl``, with one ``schema.Sample`` per
response. Samples are appended as they finish; a complete file is sorted into the order of the plan by one rename.
Finished samples are never generated again. Sample ``i`` of a problem has the same seed under every setting and for both
models.

Several workers can share the work, each with a part of the problems. Then each appends to files of its own,
``LABEL.worker-0-of-2.jsonl``, and the one that finds every response merges them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.artifacts.jsonl import JsonlWriter
from megatron_ssd.config.evaluation import EvaluationConfig
from megatron_ssd.config.generation import PromptConfig, SamplingParams, WorkerConfig
from megatron_ssd.generation.engine import Completion, Request, Sampler, sample_all
from megatron_ssd.generation.plan import plan_requests, sample_of, sampling_hash
from megatron_ssd.generation.store import Key, SampleStore, worker_file
from megatron_ssd.prompts.clock import RunClock
from megatron_ssd.prompts.prompt import Prompt, build_prompts
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem, Sample

log = logging.getLogger(__name__)

OpenSampler = Callable[..., AbstractContextManager[Sampler]]  # as generation.samplers.open_sampler
StartSampler = Callable[[ModelFolder], AbstractContextManager[Sampler]]  # the same with the engine of a run


@dataclass(frozen=True, kw_only=True)
class DecodeJob:
    """The decoding of one benchmark with one model.

    Args:
        model_name: the model's name in logs and progress bars.
        model: the model's folder.
        problems: the benchmark.
        settings: every setting, with distinct labels.
        folder: where the files are.
        max_model_len: longest prompt plus response, in tokens.
        stop_token_ids: ids that end a response besides the model's own.
        seed: the seed of the run.
        clock: the time of the run, for prompts.
        worker: decodes its part of the problems.
    """

    model_name: str
    model: ModelFolder
    problems: Sequence[Problem]
    settings: Sequence[SamplingParams]
    folder: Path
    evaluation: EvaluationConfig
    prompt: PromptConfig
    max_model_len: int
    stop_token_ids: tuple[int, ...]
    seed: int
    clock: RunClock
    worker: WorkerConfig

    @property
    def share(self) -> Sequence[Problem]:
        """The problems of this worker."""
        return self.problems[self.worker.share]

    def open_stores(self) -> dict[SamplingParams, SampleStore]:
        """The samples of each setting, as far as there are any. The caller holds the stage's lock."""
        keys = [(problem.id, index) for problem in self.problems for index in range(self.evaluation.num_samples)]
        stores = {setting: self._store(setting, keys) for setting in self.settings}
        assert len({setting.label for setting in stores}) == len(stores), "two settings share a label"
        return stores

    def missing(self, stores: dict[SamplingParams, SampleStore]) -> list[Request]:
        """This worker's requests that have no sample in ``stores``."""
        keys = {setting: missing for setting, store in stores.items() if (missing := self._missing_keys(store))}
        return [
            request
            for setting, missing in keys.items()
            for request in self._requests(setting)
            if request.key in missing
        ]

    def _missing_keys(self, store: SampleStore) -> set[Key]:
        num_samples = self.evaluation.num_samples
        keys = ((problem.id, index) for problem in self.share for index in range(num_samples))
        return {key for key in keys if key not in store}

    def is_missing(self, stores: dict[SamplingParams, SampleStore]) -> bool:
        """Whether ``missing`` has any, without making prompts."""
        return any(self._missing_keys(store) for store in stores.values())

    def sample_of(self, request: Request, completion: Completion | None) -> Sample:
        """The record of one of the job's requests; ``completion`` is None if its prompt cannot be run."""
        return sample_of(
            request,
            completion,
            tokenizer=self._tokenizer,
            sampling_hash=self._sampling_hash(request.params),
            model_revision=self.model.revision,
        )

    def _store(self, setting: SamplingParams, keys: Sequence[Key]) -> SampleStore:
        path = self.path(setting)
        if self._worker_files(setting) and path.exists() and path.read_bytes().count(b"\n") == len(keys):
            self.remove_worker_files(setting)  # they were merged by a process that was killed before it removed them
        store = SampleStore([(path, keys)], lambda: [*filter(Path.exists, [path]), *self._worker_files(setting)])
        store.update()
        return store

    def path(self, setting: SamplingParams) -> Path:
        """The file of ``setting``."""
        return self.folder / f"{setting.label}.jsonl"

    def appended(self, setting: SamplingParams) -> Path:
        """The file to which this worker appends the samples of ``setting``."""
        if self.worker.is_alone:
            return self.path(setting)
        return self.folder / f"{setting.label}.{worker_file(self.folder, self.worker).name}"

    def _worker_files(self, setting: SamplingParams) -> list[Path]:
        return sorted(self.folder.glob(f"{setting.label}.worker-*-of-*.jsonl"))

    def remove_worker_files(self, setting: SamplingParams) -> None:
        """Remove the files of several workers, after they were merged."""
        for path in self._worker_files(setting):
            path.unlink()

    def planned(self, setting: SamplingParams) -> Callable[[dict[str, Any]], bool]:
        """Whether a record of an earlier evaluation is one that this job would generate under ``setting``."""
        expected = {"model_revision": self.model.revision, "sampling_hash": self._sampling_hash(setting)}
        by_key = {request.key: request for request in self._requests(setting)}

        def is_planned(record: dict[str, Any]) -> bool:
            request = by_key.get((record.get("problem_id", ""), record.get("sample_index", -1)))
            return request is not None and record == record | expected | {
                "seed": request.seed,
                "prompt_token_ids": request.prompt_token_ids,
                "skip_reason": request.skip_reason,
            }

        return is_planned

    @cached_property
    def _tokenizer(self) -> ChatTokenizer:
        tokenizer = ChatTokenizer(self.model.path, self.clock)
        tokenizer.check_fits(self.model.vocab_size)
        tokenizer.check_ends(self.model.end_token_ids)
        return tokenizer

    @cached_property
    def _prompts(self) -> list[Prompt]:
        return list(build_prompts(self.problems, self.prompt, self._tokenizer))

    def _requests(self, setting: SamplingParams) -> list[Request]:
        return plan_requests(
            self._prompts,
            num_samples=self.evaluation.num_samples,
            run_seed=self.seed,
            params=setting,
            max_tokens=self.evaluation.max_tokens,
            max_model_len=self.max_model_len,
        )

    def _sampling_hash(self, setting: SamplingParams) -> str:
        return sampling_hash(setting, self.evaluation.max_tokens, self.stop_token_ids)


Opened = Sequence[tuple[DecodeJob, dict[SamplingParams, SampleStore]]]  # the benchmarks of one model


def decode(opened: Opened, start_sampler: StartSampler, note: Callable[[], None]) -> None:
    """Generate this worker's missing samples of one model; starts an engine only if there are any.

    Args:
        opened: the model's benchmarks.
        start_sampler: starts the engine on a model, for the duration of its context.
        note: called after each response.

    Raises:
        UserError: an engine cannot start or dies, or the tokenizer does not fit the model.
    """
    if any(job.is_missing(stores) for job, stores in opened):
        with start_sampler(opened[0][0].model) as sampler:  # the engine loads while the prompts are made
            _generate(sampler, opened, note)
    else:
        log.info("eval: every response of %s is complete", opened[0][0].model_name)


def merge(jobs: Sequence[DecodeJob]) -> int:
    """Sort the samples into one file for each setting, if none is missing. The caller holds the stage's lock.

    Returns:
        How many samples are missing: those of other workers.
    """
    opened = [(job, setting, store) for job in jobs for setting, store in job.open_stores().items()]
    if missing := sum(store.num_missing for _, _, store in opened):
        return missing
    for job, setting, store in opened:
        store.merge()
        job.remove_worker_files(setting)
    return 0


def _generate(sampler: Sampler, opened: Opened, note: Callable[[], None]) -> None:
    """All benchmarks in one call of the engine, so that it is busy until the last response of the last one."""
    missing = {request: job for job, stores in opened for request in job.missing(stores)}
    with contextlib.ExitStack() as stack:
        paths = {job.appended(request.params) for request, job in missing.items()}
        writers = {path: stack.enter_context(JsonlWriter(path)) for path in sorted(paths)}

        def record(request: Request, completion: Completion | None) -> None:
            job = missing[request]
            writers[job.appended(request.params)].write(job.sample_of(request, completion).to_json())
            note()

        for request in missing:
            if request.skip_reason:
                record(request, None)
        requests = [request for request in missing if not request.skip_reason]
        total = sum(len(stores) * len(job.share) * job.evaluation.num_samples for job, stores in opened)
        job = opened[0][0]
        desc = f"decoding {job.model_name}" if job.worker.is_alone else f"decoding {job.model_name}, {job.worker.label}"
        stats = sample_all(sampler, requests, record, desc=desc, done_before=total - len(requests))
    log.info("eval: %s generated %d tokens, %.0f per second", job.model_name, stats.tokens, stats.tokens_per_second)
