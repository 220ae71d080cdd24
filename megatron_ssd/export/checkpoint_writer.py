"""Writes a Megatron-Core checkpoint of weights, one tensor at a time.

The format is that of ``torch.distributed.checkpoint`` (torch_dist): ``.distcp`` files of concatenated ``torch.save``
archives, and ``.metadata`` with the offset of each piece of each tensor. Megatron-Core's and torch's own writers need
the full model in memory; this one needs one tensor. The result is what one process would write, so that any layout
loads it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from megatron_ssd.export.full_model import FullModel, FullTensor
from megatron_ssd.progress import progress
from megatron_ssd.training.distcp_file import DistcpFile

_FILE_BYTES = 4_000_000_000  # size at which a new file starts


def write_checkpoint(
    folder: Path,
    full: FullModel,
    pieces_of: Callable[[FullTensor], Iterable[Tensor]],
) -> dict[str, str]:
    """Write every tensor of ``full``, and the objects that Megatron-Core loads with them, to the new ``folder``.

    Args:
        folder: must not exist.
        full: names, keys and shapes.
        pieces_of: the value of a tensor, in one piece or split along its first dimension, each piece in the type to
            write. Called once per tensor, in order.

    Returns:
        SHA-256 of the large files by name, computed while they are written.

    Raises:
        OSError: the disk is full.
    """
    folder.mkdir(parents=True)
    tensors: dict[str, Any] = {}
    results: list[WriteResult] = []
    hashes: dict[str, str] = {}
    todo = list(full.tensors)
    bar: Any = progress(desc=f"writing {folder.name}", unit="weight", total=len(todo))
    with bar:
        while todo:
            name = f"__0_{len(hashes)}.distcp"
            with DistcpFile(folder / name) as file:
                if not hashes:
                    results += _write_objects(file, full.object_keys)
                while todo and file.tell() < _FILE_BYTES:
                    tensor = todo.pop(0)
                    results += _write_tensor(file, tensor, pieces_of(tensor), tensors)
                    bar.update()
            hashes[name] = file.hexdigest()
    objects = {key: BytesStorageMetadata() for key in full.object_keys}
    FileSystemWriter(folder).finish(Metadata(state_dict_metadata={**tensors, **objects}), [results])
    torch.save({}, folder / "common.pt")  # the state common to all ranks, which weights alone do not have
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))
    return hashes


def _write_tensor(
    file: DistcpFile, tensor: FullTensor, pieces: Iterable[Tensor], tensors: dict[str, Any]
) -> Iterator[WriteResult]:
    """Append one tensor to ``file`` and add its pieces to ``tensors``, the metadata by key."""
    leading = (1,) * len(tensor.index)
    start = 0  # along the first dimension
    for piece in pieces:
        assert tuple(piece.shape[1:]) == tensor.shape[1:], tensor.name
        sizes = torch.Size((*leading, *piece.shape))
        chunk = ChunkStorageMetadata(torch.Size((*tensor.index, start, *(0 for _ in tensor.shape[1:]))), sizes)
        if tensor.key not in tensors:
            properties = TensorProperties(dtype=piece.dtype)
            tensors[tensor.key] = TensorStorageMetadata(
                properties, torch.Size((*tensor.num_leading, *tensor.shape)), []
            )
        chunks = tensors[tensor.key].chunks
        yield file.append(MetadataIndex(tensor.key, chunk.offsets, len(chunks)), piece.contiguous().view(sizes))
        chunks.append(chunk)
        start += len(piece)
    assert start == tensor.shape[0], tensor.name


def _write_objects(file: DistcpFile, keys: tuple[str, ...]) -> list[WriteResult]:
    """Append an empty object per key in Megatron-Core's form: a list with the one object of a rank."""
    stream = io.BytesIO()
    torch.save([None], stream)
    return [file.append(MetadataIndex(key), stream) for key in keys]
