"""Where the tests find the project, and data that is beside it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"  # public data and models, beside the project; tests that need them skip without
