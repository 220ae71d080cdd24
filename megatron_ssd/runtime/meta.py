"""Lets layers be built on the meta device, whose tensors have shapes and no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch


@contextmanager
def on_meta() -> Iterator[None]:
    """While entered, new tensors have shapes and no memory, also those that layers put on the current GPU.

    Without a GPU, what TransformerEngine asks CUDA for while it builds a layer is answered too. ``runtime.cpu`` answers
    for streams and random states, and must be installed before. With a GPU, only the current device has another name.
    """
    answers: dict[str, object] = {"current_device": "meta"}  # layers name it, which counts more than the context
    if not torch.cuda.is_available():
        answers["is_available"] = True  # TransformerEngine's modules refuse to be built otherwise
    with torch.device("meta"), ExitStack() as answered:
        for name, answer in answers.items():
            answered.enter_context(mock.patch.object(torch.cuda, name, return_value=answer))
        yield
