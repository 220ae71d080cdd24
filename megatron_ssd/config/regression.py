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
    ``num_fewshot`` maps a task's name to a number of examples in place of its own. ``max_gen_toks`` caps the tasks' own
    length of an answer. ``chat_template`` puts every prompt into the model's chat template.
    ``think_end_token`` ends the reasoning that is cut off an answer before it is judged, for example ``</think>``.
    ``log_samples`` publishes prompts and answers beside the scores.
    """

    tasks: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    num_fewshot: dict[str, int] = field(default_factory=dict)
    max_gen_toks: int | None = None
    chat_template: bool = False
    think_end_token: str | None = None
    log_samples: bool = True

    def __post_init__(self) -> None:
        require(len(set(self.tasks)) == len(self.tasks), f"regression.tasks = {list(self.tasks)}",
                rule="names a task twice", fix="name it once")  # fmt: skip
        for key in ("data", "num_fewshot"):
            for name in getattr(self, key):
                require(name in self.tasks, f"regression.{key}.{name}", rule="is for a task that is not run",
                        fix=f"add {name} to regression.tasks, or leave this out")  # fmt: skip
        for key in ("limit", "max_gen_toks"):
            value = getattr(self, key)
            require(value is None or value > 0, f"regression.{key} = {value}", rule="must be positive",
                    fix="leave it out for the task's own")  # fmt: skip
        for name, number in self.num_fewshot.items():
            require(number >= 0, f"regression.num_fewshot.{name} = {number}", rule="must not be negative",
                    fix="leave it out for the task's own")  # fmt: skip
