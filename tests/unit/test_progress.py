"""Tests the text of progress lines."""

import pytest

from megatron_ssd.progress import progress


def test_without_a_total_the_unit_is_in_the_plural(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(progress(iter(range(4000)), desc="choosing problems", unit="row"))) == 4000
    assert "choosing problems: 4000 rows [" in capsys.readouterr().err


def test_a_list_shows_its_total(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress([1, 2], desc="writing", unit="shard"))
    assert "2/2" in capsys.readouterr().err
