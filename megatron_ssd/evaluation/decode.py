"""The benchmark decoded with one model under all its settings, in one go: the engine starts once.

Each setting has a file, ``LABEL.jsonl``, with one ``schema.Sample`` a response. Rows are appended as responses finish;
a file that is complete is put into the plan's order by one rename. Finished rows are never drawn again.
Sample ``i`` of a problem has the same seed under every setting and for both models.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_ssd.artifacts.hub import ModelFolder
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.config.run import RunConfig
from megatron_ssd.generation.engine import Completion, Sampler
from megatron_ssd.generation.plan import PlannedSample, plan_samples, request_of
from megatron_ssd.generation.recording import RowMaker
from megatron_ssd.generation.sampling import sample_all, sampling_hash
from megatron_ssd.generation.store import SampleFile
from megatron_ssd.prompts.prompt import build_prompts
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem

log = logging.getLogger(__name__)

OpenSampler = Callable[[RunConfig, ModelFolder], AbstractContextManager[Sampler]]


@dataclass(frozen=True, kw_only=True)
class DecodeJob:
    """What is decoded with one model.

    Args:
        name: what the bar calls the model.
        model: the model's folder.
        problems: the benchmark.
        settings: every setting, with labels that differ.
        folder: where the files go.
    """

    config: RunConfig
    name: str
    model: ModelFolder
    problems: Sequence[Problem]
    settings: Sequence[SamplingParams]
    folder: Path

    def run(self, open_sampler: OpenSampler, note: Callable[[], None]) -> None:
        """Draw whatever is missing; starts no engine where nothing is.

        Args:
            open_sampler: starts the engine on a model, for as long as its context is held.
            note: called after each response.

        Raises:
            UserError: an engine cannot start or dies, or the tokenizer does not fit the model.
        """
        num_samples = self.config.evaluation.num_samples
        keys = [(problem.id, index) for problem in self.problems for index in range(num_samples)]
        files = {setting.label: SampleFile(self.path(setting), keys) for setting in self.settings}
        assert len(files) == len(self.settings), "two settings share a label"
        if all(file.is_complete for file in files.values()):
            log.info("eval: every response of %s is there", self.name)
            return
        try:
            with open_sampler(self.config, self.model) as sampler:  # loads while the prompts are made
                self._draw(sampler, files, note)
        finally:
            for file in files.values():
                file.close()

    def path(self, setting: SamplingParams) -> Path:
        """The file of ``setting``."""
        return self.folder / f"{setting.label}.jsonl"

    def planned(self, setting: SamplingParams) -> Callable[[dict[str, Any]], bool]:
        """Whether a row of an earlier evaluation is one that this job would draw under ``setting``."""
        drawn_alike = {"model_revision": self.model.revision, "sampling_hash": self._sampling_hash(setting)}
        by_key = {planned.key: planned for planned in self._plan}

        def is_planned(row: dict[str, Any]) -> bool:
            planned = by_key.get((row.get("problem_id", ""), row.get("sample_index", -1)))
            return planned is not None and row == row | drawn_alike | {
                "seed": planned.seed,
                "prompt_token_ids": planned.prompt.token_ids,
                "skip_reason": planned.skip_reason,
            }

        return is_planned

    @cached_property
    def _tokenizer(self) -> ChatTokenizer:
        tokenizer = ChatTokenizer(self.model.path)
        tokenizer.check_fits(self.model.vocab_size)
        return tokenizer

    @cached_property
    def _plan(self) -> list[PlannedSample]:
        return plan_samples(
            build_prompts(self.problems, self.config.prompt, self._tokenizer),
            num_samples=self.config.evaluation.num_samples,
            run_seed=self.config.seed,
            max_model_len=self.config.engine.max_model_len,
        )

    def _sampling_hash(self, setting: SamplingParams) -> str:
        stops = self.config.sampling.stop_token_ids if self.config.sampling else ()
        return sampling_hash(setting, self.config.evaluation.max_tokens, stops)

    def _draw(self, sampler: Sampler, files: dict[str, SampleFile], note: Callable[[], None]) -> None:
        config, plan = self.config, self._plan
        by_key = {planned.key: planned for planned in plan}
        makers = {
            setting.label: RowMaker(self._tokenizer, self.model.revision, self._sampling_hash(setting))
            for setting in self.settings
        }
        requests = []
        for setting in self.settings:
            file = files[setting.label]
            for planned in plan:
                if planned.key in file.done:
                    continue
                if planned.skip_reason:
                    file.write(makers[setting.label].skipped(planned))
                    continue
                request = request_of(planned, decoding=setting, max_tokens=config.evaluation.max_tokens)
                requests.append(dataclasses.replace(request, key=(setting.label, *planned.key)))

        def record(completion: Completion) -> None:
            label, *key = completion.key
            row = makers[str(label)].finished(by_key[tuple(key)], completion)  # type: ignore[index]
            files[str(label)].write(row)
            note()

        done_before = len(plan) * len(files) - len(requests)
        stats = sample_all(sampler, requests, record, desc=f"decoding {self.name}", done_before=done_before)
        log.info("eval: %s drew %d tokens, %.0f a second", self.name, stats.tokens, stats.tokens_per_second)
