"""Tests for the loggers of training metrics."""

from pathlib import Path

from megatron_ssd.training.metrics import IterationMetrics, JsonlLogger, MetricsLogger, TensorBoardLogger
from megatron_ssd.training.stage import METRICS_FILE
from tests.helpers.jsonl import complete_records


def measured(iteration: int, loss: float = 1.0) -> IterationMetrics:
    return IterationMetrics(
        iteration=iteration, loss=loss, grad_norm=1.0, learning_rate=1e-3, valid_tokens=10, tokens=20,
        computed_tokens=24, tokens_per_second=100.0, tokens_per_second_per_gpu=50.0, seconds=0.2, peak_memory_gib=0.5,
        skipped=False, spike=False,
    )  # fmt: skip


def write(folder: Path, iterations: range, *, done: int, loss: float = 1.0, tensorboard: bool = False) -> None:
    loggers: list[MetricsLogger] = [JsonlLogger(folder, done=done)]
    if tensorboard:
        loggers.append(TensorBoardLogger(folder / "tensorboard", done=done, interval=2))
    for logger in loggers:
        for iteration in iterations:
            logger.log(measured(iteration, loss))
        logger.close()


def test_resuming_truncates_the_metrics_to_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8), done=0)
    write(tmp_path, range(5, 11), done=4, loss=2.0)
    assert [record["iteration"] for record in complete_records(tmp_path / METRICS_FILE)] == list(range(1, 11))
    assert [record["loss"] for record in complete_records(tmp_path / METRICS_FILE)] == [1.0] * 4 + [2.0] * 6


def test_a_partial_last_line_is_removed(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), done=0)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"iteration": 4, "lo')
    write(tmp_path, range(4, 5), done=3)
    assert [record["iteration"] for record in complete_records(tmp_path / METRICS_FILE)] == [1, 2, 3, 4]


def test_a_run_without_a_checkpoint_starts_with_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), done=0)
    write(tmp_path, range(1, 2), done=0)
    assert [record["iteration"] for record in complete_records(tmp_path / METRICS_FILE)] == [1]


def test_tensorboard_gets_the_metrics_at_its_interval(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, range(1, 5), done=0, tensorboard=True)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "train/tokens_per_second"} <= set(
        board.Tags()["scalars"]
    )
    assert [event.step for event in board.Scalars("train/loss")] == [2, 4]
