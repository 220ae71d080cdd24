"""Fine-tuning in a plain loop with transformers' model, without code of this project or Megatron-Core.

    python -m tests.helpers.plain_loop FOLDER...

``FOLDER/plain_loop.json`` is the configuration, which has the fields of ``PlainRun``. The program writes the loss and
the gradient norm of each iteration to ``FOLDER/plain_curve.json``, and the trained model to ``FOLDER/plain``.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class PlainRun:
    """A run in which every iteration uses all ``documents``.

    Documents are pairs of [prompt ids, response ids]. Only response ids count in the loss.
    """

    model: str
    documents: list[tuple[list[int], list[int]]]
    train_iters: int
    lr: float
    min_lr: float
    lr_warmup_iters: int
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    clip_grad: float

    def learning_rate(self, iteration: int) -> float:
        """Linear warm-up followed by cosine decay; ``iteration`` counts from 1."""
        if iteration <= self.lr_warmup_iters:
            return self.lr * iteration / self.lr_warmup_iters
        progress = (iteration - self.lr_warmup_iters) / (self.train_iters - self.lr_warmup_iters)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def save(self, folder: Path) -> None:
        """Write the configuration that ``main`` reads."""
        (folder / "plain_loop.json").write_text(json.dumps(asdict(self)))


def train(run: PlainRun) -> tuple[list[dict[str, float]], PreTrainedModel]:
    """Train in fp32 with one document per forward pass.

    Returns the loss and the gradient norm of each iteration, and the trained model.
    """
    torch.set_num_threads(1)  # a second thread does not help such a small model
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    # As usual, vectors do not decay. Here these are the weights of norms.
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": run.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=run.lr, betas=run.betas, eps=run.eps, foreach=False)
    num_targets = sum(len(response) for _, response in run.documents)
    curve = []
    for iteration in range(1, run.train_iters + 1):
        optimizer.zero_grad()
        total = 0.0
        for prompt, response in run.documents:
            ids = torch.tensor([prompt + response])
            logits_SV = model(ids).logits[0, len(prompt) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits_SV, torch.tensor(response), reduction="sum") / num_targets
            loss.backward()
            total += loss.item()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip_grad).item()
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(iteration)
        optimizer.step()
        curve.append({"loss": total, "grad_norm": grad_norm})
    return curve, model


def main(folder: Path) -> None:
    """Run the configuration in ``folder``."""
    curve, model = train(PlainRun(**json.loads((folder / "plain_loop.json").read_text())))
    (folder / "plain_curve.json").write_text(json.dumps(curve))
    model.save_pretrained(folder / "plain")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(Path(name))
