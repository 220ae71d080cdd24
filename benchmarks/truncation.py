"""Compares the speed of sampling with top-p at real vocabularies: without it, with vLLM's own, with this project's.

    python -m benchmarks.truncation [FOLDER ...] [--rounds 5] [--batch 64] [--tokens 40]

Without folders, two models with the shapes of SmolLM2-135M (vocabulary 49,152) and Qwen2.5-Coder-0.5B (151,936) are
written with random weights. One engine per model decodes a batch; the three sides alternate in it, so that a load of
the machine affects all of them. Prompts are code if the folder has a tokenizer. All sides keep the 20 most likely
tokens at temperature 1.5, and top-p is 0.8.
The script stops unless the two sides with top-p draw the same tokens.
The table gives medians by the clock and by the CPU seconds of all threads, each with the median over rounds of the
ratio to the side without top-p. On a machine with other work, read the second ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer

from megatron_ssd.artifacts.hub import open_model
from megatron_ssd.config.generation import EngineConfig, SamplingParams
from megatron_ssd.generation.engine import Completion, Request
from megatron_ssd.generation.samplers import vllm_spec
from megatron_ssd.generation.vllm_engine import VllmEngine
from megatron_ssd.prompts.prompt import Prompt

CODE = 'def part_{0}(values: list[int]) -> list[int]:\n    """Return the values that {0} divides, sorted."""\n'
WITHOUT = "top-k alone"
SIDES = {WITHOUT: (1.0, True), "top-k and top-p, vLLM's own": (0.8, False), "top-k and top-p": (0.8, True)}
_SHAPES = {
    "smollm2-135m": {
        "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "qwen2.5-coder-0.5b": {
        "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    },
}  # fmt: skip


def main() -> None:
    """Measure each model, and print a table for each."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="Hugging Face folders")
    options.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    options.add_argument("--batch", type=int, default=64, help="responses at a time (default 64)")
    options.add_argument("--tokens", type=int, default=40, help="tokens per response (default 40)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = arguments.folders or [_make_model(Path(scratch) / name, shape) for name, shape in _SHAPES.items()]
        for folder in folders:
            _compare(folder, rounds=arguments.rounds, batch=arguments.batch, tokens=arguments.tokens)


def _make_model(folder: Path, shape: dict[str, object]) -> Path:
    """Write a Hugging Face folder with random weights and tied embeddings."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        **shape, tie_word_embeddings=True, max_position_embeddings=2048, dtype="bfloat16", eos_token_id=0,
        initializer_range=0.1,  # peaked like a trained model: top-p drops some of the 20 tokens
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _compare(folder: Path, *, rounds: int, batch: int, tokens: int) -> None:
    settings = EngineConfig(max_model_len=256, max_num_seqs=batch, enforce_eager=True)
    model = open_model(str(folder))
    spec = vllm_spec(settings, model, device="cpu", end_token_ids=())
    os.environ.update(spec.environment(0))
    engine = spec.start()
    prompts = _prompts(folder, model.vocab_size, batch)
    speeds: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for number in range(rounds + 1):
        drawn = {}
        for side, (top_p, truncates) in SIDES.items():
            params = SamplingParams(temperature=1.5, top_k=20, top_p=top_p)
            engine._truncates = truncates
            started = time.perf_counter(), time.process_time()
            drawn[side] = _decode(engine, prompts, params, tokens=tokens)
            if number:  # the first round warms up
                count = sum(map(len, drawn[side].values()))
                seconds = time.perf_counter() - started[0], time.process_time() - started[1]
                speeds[side].append((count / seconds[0], count / seconds[1]))
        _, theirs, ours = drawn.values()
        if theirs != ours:
            sys.exit("the same seeds gave other tokens than vLLM's own top-k and top-p")
    print(f"\n{folder.name}: vocabulary {model.vocab_size:,}, batches of {batch}, {rounds} rounds")
    print(f"{'':30}{'tokens/s':>10}{'ratio':>8}{'tokens/CPU s':>14}{'ratio':>8}")
    for side, rounds_of_side in speeds.items():
        line = f"{side:30}"
        for width, own, base in zip(
            (10, 14), zip(*rounds_of_side, strict=True), zip(*speeds[WITHOUT], strict=True), strict=True
        ):
            ratio = statistics.median(one / other for one, other in zip(own, base, strict=True))
            line += f"{statistics.median(own):{width},.0f}{ratio:8.2f}"
        print(line)


def _prompts(folder: Path, vocab_size: int, count: int) -> list[list[int]]:
    """Token ids: of code if the folder has a tokenizer, else made up."""
    if (file := folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(file))
        return [tokenizer.encode(CODE.format(number)).ids for number in range(count)]
    return [[(number * 997 + index * 31) % vocab_size for index in range(32)] for number in range(count)]


def _decode(
    engine: VllmEngine, prompts: list[list[int]], params: SamplingParams, *, tokens: int
) -> dict[int, list[int]]:
    """The tokens of each response. All are decoded together."""
    for number, prompt in enumerate(prompts):
        engine.add(
            number,
            Request(
                prompt=Prompt(problem_id=str(number), messages=[], token_ids=prompt),
                sample_index=0,
                seed=number,
                params=params,
                max_tokens=tokens,
            ),
        )
    drawn: dict[int, list[int]] = {}
    while len(drawn) < len(prompts):
        for number, result in engine.step():
            assert isinstance(result, Completion)
            drawn[number] = result.token_ids
    return drawn


if __name__ == "__main__":
    main()
