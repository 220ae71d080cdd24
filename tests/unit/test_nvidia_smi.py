"""Tests what is read from nvidia-smi, with a fake one."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ssd.nvidia_smi import visible_capability, visible_gpus
from tests.helpers.executables import write_executable


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [80, 141, 180]), ("2,0", [180, 80]), ("GPU-a,GPU-b", [80, 141]), ("", []), ("7", [])],
)
def test_gpus_are_those_that_cuda_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[int]
) -> None:
    write_executable(tmp_path / "nvidia-smi", "printf '%s\\n' '80, 8.0' '141, 9.0' '180, 10.3'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.memory_bytes / 2**20 for gpu in visible_gpus()] == expected
    assert visible_capability() == ((8, 0) if 80 in expected else None)


def test_without_a_driver_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    assert visible_capability() is None
