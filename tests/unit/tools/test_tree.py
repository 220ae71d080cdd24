"""The README's tree is what the files say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_readme_shows_the_tree_of_today() -> None:
    tree = subprocess.run(
        [sys.executable, str(ROOT / "tools/tree.py")], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert tree in (ROOT / "README.md").read_text(encoding="utf-8"), "run: python tools/tree.py --write"
    assert "megatron_ssd/" in tree
    assert "report.py" in tree
