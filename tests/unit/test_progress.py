"""What a progress line says."""

import pytest

from megatron_ssd.progress import progress


def test_what_is_counted_without_an_end_is_in_the_plural(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(progress(iter(range(4000)), desc="choosing problems", unit="row"))) == 4000
    assert "choosing problems: 4000 rows [" in capsys.readouterr().err


def test_a_list_has_its_end_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress([1, 2], desc="writing", unit="shard"))
    assert "2/2" in capsys.readouterr().err
