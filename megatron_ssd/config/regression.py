"""Other benchmarks: what lm-eval runs on base and tuned model, to see whether tuning harmed anything else."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """Tasks of lm-eval, with its own prompts, filters, metrics and decoding.

    ``tasks`` are names of tasks or groups of lm-eval; where empty the stage is left out. ``data`` maps a task's name to
    a local file of the split that it is evaluated on, or to a folder of files whose names begin with their split's
    (``test-00000-of-00001.parquet``); other tasks are read from the Hub. ``limit`` takes the first rows of each task.
    ``num_fewshot`` overrides the tasks' own number of examples, except where that is 0. ``max_gen_toks`` caps the
    tasks' own length of an answer. ``chat_template`` puts every prompt into the model's chat template.
    ``think_end_token`` ends the reasoning that is cut off an answer before it is judged, for example ``</think>``.
    ``log_samples`` publishes prompts and answers beside the scores.
    """

    tasks: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    num_fewshot: int | None = None
    max_gen_toks: int | None = None
    chat_template: bool = False
    think_end_token: str | None = None
    log_samples: bool = True

    def __post_init__(self) -> None:
        require(len(set(self.tasks)) == len(self.tasks), f"regression.tasks = {list(self.tasks)}",
                rule="names a task twice", fix="name it once")  # fmt: skip
        for name in self.data:
            require(name in self.tasks, f"regression.data.{name}", rule="is data of a task that is not run",
                    fix=f"add {name} to regression.tasks, or leave its data out")  # fmt: skip
        for key in ("limit", "max_gen_toks"):
            value = getattr(self, key)
            require(value is None or value > 0, f"regression.{key} = {value}", rule="must be positive",
                    fix="leave it out for the task's own")  # fmt: skip
        require(self.num_fewshot is None or self.num_fewshot >= 0, f"regression.num_fewshot = {self.num_fewshot}",
                rule="must not be negative", fix="leave it out for the task's own")  # fmt: skip
