"""Compares the speed of the sampling stage with that of bare ``LLM.generate``.

    python -m benchmarks.sampling [--rounds 3] [--problems 1000] [--max-tokens 256]

A tiny Qwen3 (random weights, written by transformers) samples one response per minicode problem. Both sides have the
same prompts, seeds and settings. ``launch/generate.py`` runs unchanged: requests and results are sent between
processes, and every response is decoded to text and written to disk as soon as it ends. ``LLM.generate`` gets all
prompts at once and keeps the results in memory. Both use one engine on both cores with the same engine settings and
environment, and load it again in each round. They alternate, and loading does not count. The script stops unless the
same seeds give the same number of tokens.
The table gives medians, and the median over rounds of the ratio within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.sides import ROOT
from benchmarks.train_step import SHAPE, write_model

MAX_MODEL_LEN, MAX_NUM_SEQS = 1024, 256
_BARE = """
import json, sys, time
from vllm import LLM, SamplingParams

samples = [json.loads(line) for line in open(sys.argv[1])]
llm = LLM(**json.loads(sys.argv[2]))
prompts = [{"prompt_token_ids": sample["prompt_token_ids"]} for sample in samples]
parameters = [SamplingParams(**json.loads(sys.argv[3]), seed=sample["seed"]) for sample in samples]
started = time.perf_counter()
results = llm.generate(prompts, parameters, use_tqdm=False)
seconds = time.perf_counter() - started
print(json.dumps({"tokens": sum(len(result.outputs[0].token_ids) for result in results), "seconds": seconds}))
"""


def main() -> None:
    """Make the model, run both sides alternately, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    options.add_argument("--problems", type=int, default=1000, help="prompts per round (default 1000)")
    options.add_argument("--max-tokens", type=int, default=256, help="longest response (default 256)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _make_model(folder / "model")
        speeds: dict[str, list[float]] = {"LLM.generate": [], "launch/generate.py": []}
        for _ in range(arguments.rounds):
            tokens, speed = _pipeline(folder, problems=arguments.problems, max_tokens=arguments.max_tokens)
            bare_tokens, bare_speed = _bare(folder, max_tokens=arguments.max_tokens)
            if tokens != bare_tokens:
                sys.exit(f"the same seeds gave {tokens} tokens in the pipeline and {bare_tokens} in LLM.generate")
            speeds["launch/generate.py"].append(speed)
            speeds["LLM.generate"].append(bare_speed)
    print(
        f"\n{arguments.problems} prompts, {tokens:,} tokens sampled by each side in each of {arguments.rounds} rounds"
    )
    print(f"{'':22}{'tokens/s':>10}{'lowest':>10}{'highest':>10}{'ratio':>8}")
    for name, own in speeds.items():
        ratio = statistics.median(one / bare for one, bare in zip(own, speeds["LLM.generate"], strict=True))
        print(f"{name:22}{statistics.median(own):10,.0f}{min(own):10,.0f}{max(own):10,.0f}{ratio:8.3f}")


def _make_model(folder: Path) -> None:
    """Write a Hugging Face folder with random weights and minicode's tokenizer."""
    import transformers

    from megatron_ssd.config.problems import MinicodeConfig
    from megatron_ssd.problems.minicode.documents import corpus
    from megatron_ssd.problems.minicode.tokenizer import save_tokenizer, train_tokenizer

    folder.mkdir()
    trained = train_tokenizer(corpus(MinicodeConfig(num_documents=2000)), SHAPE["vocab_size"])
    save_tokenizer(trained, folder, max_length=SHAPE["max_position_embeddings"])
    end = transformers.AutoTokenizer.from_pretrained(folder).eos_token_id
    write_model(folder, eos_token_id=end, bos_token_id=None)


def _pipeline(folder: Path, *, problems: int, max_tokens: int) -> tuple[int, float]:
    """Tokens, and tokens per second, of the sampling stage."""
    overrides = [
        "+experiment=demo", f"run_dir={folder / 'run'}", f"model.path={folder / 'model'}",
        f"minicode.num_train_problems={problems}", f"sampling.max_tokens={max_tokens}",
        f"engine.max_model_len={MAX_MODEL_LEN}", f"engine.max_num_seqs={MAX_NUM_SEQS}", "engine.data_parallel_size=1",
    ]  # fmt: skip
    shutil.rmtree(folder / "run" / "samples", ignore_errors=True)
    for script in ("problems", "generate"):
        _run([sys.executable, str(ROOT / "launch" / f"{script}.py"), *overrides])
    manifest = json.loads((folder / "run" / "samples" / "manifest.json").read_text())
    return manifest["counts"]["response_tokens"], manifest["facts"]["tokens_per_second"]


def _bare(folder: Path, *, max_tokens: int) -> tuple[int, float]:
    """Tokens, and tokens per second, of ``LLM.generate`` on the recorded prompts and seeds."""
    engine = {
        "model": str(folder / "model"), "dtype": "float32", "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": MAX_NUM_SEQS, "enforce_eager": True, "kv_cache_memory_bytes": 1 << 30,
        "enable_chunked_prefill": False, "max_num_batched_tokens": 8192, "generation_config": "vllm",
    }  # fmt: skip
    decoding = {"temperature": 1.5, "top_k": 20, "top_p": 0.6, "max_tokens": max_tokens}
    samples = folder / "samples.jsonl"
    shards = sorted((folder / "run" / "samples").glob("shard-*.jsonl"))
    samples.write_text("".join(shard.read_text() for shard in shards))
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "OMP_WAIT_POLICY": "passive",
    }  # fmt: skip
    command = [sys.executable, "-c", _BARE, str(samples), json.dumps(engine), json.dumps(decoding)]
    found = json.loads(_run(command, environment).strip().splitlines()[-1])
    return found["tokens"], found["tokens"] / found["seconds"]


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Standard output of a command. If it fails, print its standard error and exit."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode != 0:
        sys.exit(done.stderr[-4000:])
    return done.stdout


if __name__ == "__main__":
    main()
