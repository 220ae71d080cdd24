"""The benchmark decoded with one model under all its settings, in one go: the engine starts once.

Each setting has a file, ``LABEL.jsonl``, with one ``schema.Sample`` a response. Rows are appended as responses finish;
a file that is complete is put into the plan's order by one rename. Finished rows are never drawn again.
Sample ``i`` of a problem has the same seed under every setting and for both models.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from megatron_ssd.artifacts.jsonl import JsonlWriter, heal, iter_jsonl
from megatron_ssd.config.generation import Decoding
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import UserError
from megatron_ssd.generation.model_folder import ModelFolder
from megatron_ssd.generation.plan import PlannedSample, plan_samples, request_of
from megatron_ssd.generation.sampler import Completion, Sampler
from megatron_ssd.generation.sampling import sample_all, sampling_hash
from megatron_ssd.prompts.prompt import build_prompts
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem, Sample

log = logging.getLogger(__name__)

Key = tuple[str, int]  # problem id, sample index
OpenSampler = Callable[[RunConfig, ModelFolder], AbstractContextManager[Sampler]]
_SECONDS_BETWEEN_NOTES = 5.0


class GenerationFile:
    """The responses of one setting. Opening it takes up what an earlier writer left.

    Args:
        path: the JSONL file.
        keys: every planned response, in order.

    Raises:
        UserError: a row is broken or not in the plan.
    """

    def __init__(self, path: Path, keys: Sequence[Key]) -> None:
        self._path = path
        self._place = {key: place for place, key in enumerate(keys)}
        self._writer: JsonlWriter | None = None
        self.done: set[Key] = set()
        if path.exists():
            heal(path)
            for row in iter_jsonl(path):
                key = row.get("problem_id"), row.get("sample_index")
                if key not in self._place or key in self.done:
                    raise UserError(
                        f"{path} with response {key}",
                        rule="that response is not planned, or comes twice",
                        fix=f"move {path} away and evaluate again",
                    )
                self.done.add(key)
            self._finish_if_complete()

    @property
    def is_complete(self) -> bool:
        """Whether every planned response is there."""
        return len(self.done) == len(self._place)

    def write(self, sample: Sample) -> None:
        """Append a response. Safe from a kill once this returns."""
        assert sample.key in self._place, sample.key
        assert sample.key not in self.done, sample.key
        self._writer = self._writer or JsonlWriter(self._path)
        self._writer.write(sample.to_json())
        self.done.add(sample.key)
        self._finish_if_complete()

    def close(self) -> None:
        """Force what was written to disk."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _finish_if_complete(self) -> None:
        if not self.is_complete:
            return
        self.close()
        places = [self._place[row["problem_id"], row["sample_index"]] for row in iter_jsonl(self._path)]
        if places == sorted(places):
            return
        lines = self._path.read_bytes().splitlines(keepends=True)
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with temporary.open("wb") as file:
            file.writelines(line for _, line in sorted(zip(places, lines, strict=True)))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


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
    settings: Sequence[Decoding]
    folder: Path

    def run(self, open_sampler: OpenSampler, note: Callable[[], None]) -> None:
        """Draw whatever is missing; starts no engine where nothing is.

        Args:
            open_sampler: starts the engine on a model, for as long as its context is held.
            note: called every few seconds while responses come in.

        Raises:
            UserError: an engine cannot start or dies, or the tokenizer does not fit the model.
        """
        num_samples = self.config.evaluation.num_samples
        keys = [(problem.id, index) for problem in self.problems for index in range(num_samples)]
        files = {setting.label: GenerationFile(self.path(setting), keys) for setting in self.settings}
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

    def path(self, setting: Decoding) -> Path:
        """The file of ``setting``."""
        return self.folder / f"{setting.label}.jsonl"

    def _draw(self, sampler: Sampler, files: dict[str, GenerationFile], note: Callable[[], None]) -> None:
        config, tokenizer = self.config, ChatTokenizer(self.model.path)
        tokenizer.check_fits(self.model.vocab_size)
        plan = plan_samples(
            build_prompts(self.problems, config.prompt, tokenizer),
            num_samples=config.evaluation.num_samples,
            run_seed=config.seed,
            max_model_len=config.engine.max_model_len,
        )
        by_key = {planned.key: planned for planned in plan}
        hashes = {setting.label: self._hash(setting) for setting in self.settings}
        requests = []
        for setting in self.settings:
            file = files[setting.label]
            for planned in plan:
                if planned.key in file.done:
                    continue
                if planned.skip_reason:
                    file.write(self._sample(planned, hashes[setting.label]))
                    continue
                request = request_of(planned, decoding=setting, max_tokens=config.evaluation.max_tokens)
                requests.append(dataclasses.replace(request, key=(setting.label, *planned.key)))
        noted = time.monotonic()

        def record(completion: Completion) -> None:
            nonlocal noted
            label, *key = completion.key
            empty = self._sample(by_key[tuple(key)], hashes[str(label)])  # type: ignore[index]
            files[str(label)].write(
                dataclasses.replace(
                    empty,
                    response=tokenizer.text(completion.token_ids),
                    response_token_ids=completion.token_ids,
                    finish_reason=completion.finish_reason,
                )
            )
            if time.monotonic() - noted > _SECONDS_BETWEEN_NOTES:
                note()
                noted = time.monotonic()

        done_before = len(plan) * len(files) - len(requests)
        stats = sample_all(sampler, requests, record, desc=f"decoding {self.name}", done_before=done_before)
        log.info("eval: %s drew %d tokens, %.0f a second", self.name, stats.tokens, stats.tokens_per_second)

    def _hash(self, setting: Decoding) -> str:
        return sampling_hash(setting, self.config.evaluation.max_tokens)

    def _sample(self, planned: PlannedSample, hash_: str) -> Sample:
        """The row of a prompt that was not run."""
        return Sample(
            problem_id=planned.prompt.problem_id,
            sample_index=planned.sample_index,
            messages=planned.prompt.messages,
            prompt_token_ids=planned.prompt.token_ids,
            response="",
            response_token_ids=[],
            finish_reason="skipped",
            seed=planned.seed,
            sampling_hash=hash_,
            model_revision=self.model.revision,
            skip_reason=planned.skip_reason,
        )
