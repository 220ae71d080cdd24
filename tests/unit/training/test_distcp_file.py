"""Tests for files of tensors that are hashed while they are written."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import resource
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_ssd.training import distcp_file
from megatron_ssd.training.distcp_file import DistcpFile

TENSORS = st.tuples(st.integers(0, 5_000), st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(TENSORS, st.binary(max_size=5_000)), max_size=8))
def test_each_value_is_where_its_entry_says_and_the_hash_is_of_the_file(
    contents: list[tuple[int, torch.dtype] | bytes],
) -> None:
    given_values = [
        io.BytesIO(each) if isinstance(each, bytes) else torch.randint(-9, 9, each[:1]).to(each[1]) for each in contents
    ]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(distcp_file, "_PIECE", 4_096):
        path = Path(folder, "values.distcp")
        with DistcpFile(path) as file:
            entries = [file.append(MetadataIndex(str(number)), value) for number, value in enumerate(given_values)]
        content = path.read_bytes()
    assert file.hexdigest() == hashlib.sha256(content).hexdigest()
    for number, (entry, value) in enumerate(zip(entries, given_values, strict=True)):
        where = entry.storage_data
        assert (entry.index.fqn, where.relative_path) == (str(number), "values.distcp")
        found = content[where.offset : where.offset + where.length]
        if isinstance(value, torch.Tensor):
            assert torch.equal(torch.load(io.BytesIO(found)), value)
        else:
            assert found == value.getvalue()
    assert len(content) == sum(entry.size_in_bytes for entry in entries)


@pytest.mark.parametrize("refused", ["open", "pwrite"])
def test_a_file_system_without_direct_writes_gets_the_same_file(
    tmp_path: Path, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few file systems refuse O_DIRECT only when they are asked to write."""
    function, used = getattr(os, refused), []

    def refuse(target: Any, *args: Any) -> int:
        flags = args[0] if refused == "open" else fcntl.fcntl(target, fcntl.F_GETFL)
        used.append(bool(flags & os.O_DIRECT))
        if used[-1]:
            if refused == "open":
                Path(target).touch()  # Linux has created the file when it refuses
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return function(target, *args)

    value = torch.arange(5 << 20)
    for name in ("direct", "refused"):
        with DistcpFile(tmp_path / name) as file:
            file.append(MetadataIndex("value"), value)
        monkeypatch.setattr(os, refused, refuse)
    assert used[:2] == [True, False]
    assert (tmp_path / "refused").read_bytes() == (tmp_path / "direct").read_bytes()


def test_a_failed_write_is_the_error_of_the_system(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught, DistcpFile(tmp_path / "large.distcp") as file:
            file.append(MetadataIndex("large"), torch.zeros(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
