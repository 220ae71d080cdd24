"""The smaller model that says how likely it finds each response."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ssd.errors import require


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """A model whose mean log-probability of a response is kept beside it; ``filters.proxy_band`` keeps a band of these.

    ``path`` is a Hugging Face folder or a Hub id, of any tokenizer. Prompt and response together are read up to
    ``max_model_len`` tokens of the proxy; null means its whole context.
    """

    path: str
    revision: str | None = None
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        require(self.max_model_len is None or self.max_model_len > 1, f"proxy.max_model_len = {self.max_model_len}",
                rule="must hold a prompt and a response", fix="leave it out for the model's whole context")  # fmt: skip
