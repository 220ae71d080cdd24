"""Tests that all prompts of a run see the same time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from megatron_ssd.config.generation import PromptConfig
from megatron_ssd.prompts import clock
from megatron_ssd.prompts.clock import TIME_FILE, RunClock
from megatron_ssd.prompts.prompt import prompt_ids
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from tests.helpers.errors import one_line_error
from tests.helpers.tokenizer_folders import with_template

FORMAT = "%Y-%m-%d %H:%M:%S.%f %z"
DATED = "{{ strftime_now('" + FORMAT + "') }} {{ messages[0].content }}"


def set_time(monkeypatch: pytest.MonkeyPatch, now: Callable[[], datetime]) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return now()

    monkeypatch.setattr(clock, "datetime", Clock)


def prompt(folder: Path, run_dir: Path) -> str:
    tokenizer = ChatTokenizer(folder, RunClock(run_dir))
    return tokenizer.text(prompt_ids([{"role": "user", "content": "add"}], PromptConfig(), tokenizer))


def test_a_run_over_midnight_keeps_its_time(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_template(tiny_tokenizer, tmp_path / "model", DATED)
    evening = datetime(2026, 2, 28, 23, 59, 59, 999999).astimezone()
    set_time(monkeypatch, lambda: evening)
    assert prompt(folder, tmp_path / "run") == f"2026-02-28 23:59:59.000000 {evening:%z} add"
    set_time(monkeypatch, lambda: evening + timedelta(days=1))
    assert prompt(folder, tmp_path / "run") == f"2026-02-28 23:59:59.000000 {evening:%z} add"
    assert RunClock(tmp_path / "run").facts == {"prompt_time": evening.isoformat(timespec="seconds")}
    assert prompt(folder, tmp_path / "other") == f"2026-03-01 23:59:59.000000 {evening:%z} add"


def test_processes_that_start_together_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, size = datetime(2026, 1, 1).astimezone(), 16
    local, gate, seen = threading.local(), threading.Barrier(size), list[str]()
    set_time(monkeypatch, lambda: start + timedelta(days=local.number))

    def ask(number: int) -> None:
        local.number = number
        gate.wait()
        seen.append(RunClock(tmp_path / "run").strftime(FORMAT))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == size
    assert len(set(seen)) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [TIME_FILE]


def test_a_template_without_time_records_none(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder = with_template(tiny_tokenizer, tmp_path / "model", "{{ messages[0].content }}")
    assert prompt(folder, tmp_path / "run") == "add"
    assert RunClock(tmp_path / "run").facts == {}
    assert not (tmp_path / "run").exists()


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / TIME_FILE).write_text("yesterday")
    with one_line_error("is not a time in ISO 8601; write the prompt_time of the run's manifests into it"):
        RunClock(tmp_path).strftime(FORMAT)


@pytest.mark.parametrize("drawn", ["{{ ['a', 'b']|random }}", "{% set x = [1] | random %}{{ x }}", "{{ lipsum(1) }}"])
def test_a_template_that_draws_at_random_is_refused(tmp_path: Path, tiny_tokenizer: Path, drawn: str) -> None:
    folder = with_template(tiny_tokenizer, tmp_path / "model", "{{ messages[0].content }}" + drawn)
    with one_line_error("draws at random"):
        prompt(folder, tmp_path / "run")


def test_the_word_random_in_a_prompt_is_text(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder = with_template(tiny_tokenizer, tmp_path / "model", "{{ messages[0].content }} | random {# x|random #}")
    assert json.dumps(prompt(folder, tmp_path / "run")).startswith('"add | random')
