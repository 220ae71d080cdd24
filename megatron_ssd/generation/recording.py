"""What becomes a row: a planned sample and, where its prompt could be run, the completion that the engine gave."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron_ssd.generation.engine import Completion
from megatron_ssd.generation.plan import PlannedSample
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Sample

SECONDS_BETWEEN_NOTES = 5.0  # of the time spent, while responses come in


@dataclass(frozen=True)
class RowMaker:
    """Rows of one model under one way of decoding."""

    tokenizer: ChatTokenizer
    model_revision: str
    sampling_hash: str

    def skipped(self, planned: PlannedSample) -> Sample:
        """The row of a prompt that cannot be run; it says why."""
        return Sample(
            problem_id=planned.prompt.problem_id,
            sample_index=planned.sample_index,
            messages=planned.prompt.messages,
            prompt_token_ids=planned.prompt.token_ids,
            response="",
            response_token_ids=[],
            finish_reason="skipped",
            seed=planned.seed,
            sampling_hash=self.sampling_hash,
            model_revision=self.model_revision,
            skip_reason=planned.skip_reason,
        )

    def finished(self, planned: PlannedSample, completion: Completion) -> Sample:
        """The row of a response, with its token ids as sampled."""
        return dataclasses.replace(
            self.skipped(planned),
            response=self.tokenizer.text(completion.token_ids),
            response_token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            skip_reason="",
        )
