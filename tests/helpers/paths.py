"""Paths of the project and of the public data beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"  # tests that need it are skipped without it
HUMANEVAL = DATA / "humaneval" / "HumanEval.jsonl.gz"
MBPP = DATA / "mbpp" / "mbpp.jsonl"
RSTAR = DATA / "rstar_coder_seed_sft"
CODEFORCES = DATA / "lcb_schema" / "codeforces_408.jsonl"
# Folders of Hugging Face models, for tests of the whole loop.
REAL_MODELS = [Path(path) for path in os.environ.get("MEGATRON_SSD_TEST_MODELS", "").split(":") if path]


def needs(*paths: Path) -> pytest.MarkDecorator:
    """A mark that skips a test unless all ``paths`` exist."""
    return pytest.mark.skipif(not all(path.exists() for path in paths), reason=f"needs {', '.join(map(str, paths))}")
