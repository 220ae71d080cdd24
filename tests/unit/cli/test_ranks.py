"""Tests the arguments that torchrun gets besides those of the command line."""

from __future__ import annotations

from torch.distributed import run

from megatron_ssd.cli.ranks import torchrun_arguments


def address(*arguments: str) -> str | None:
    parsed = run.parse_args(torchrun_arguments([*arguments, "--nproc-per-node=2", "train.py"]))
    found: str | None = parsed.local_addr
    return found


def test_one_node_does_not_depend_on_the_name_of_its_host() -> None:
    assert address("--standalone") == "127.0.0.1"
    assert address("--standalone", "--local-addr=::1") == "::1"
    assert address("--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=head:29500") is None
