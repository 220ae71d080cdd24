"""The contracts of pyproject.toml catch what they are there to catch, tried on a package of empty layers."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


@pytest.fixture
def package(tmp_path):
    """A megatron_ssd that has every layer and imports nothing, under this project's settings."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    for name in " : ".join(layers).replace("(", "").replace(")", "").split(" : "):
        (tmp_path / "megatron_ssd" / name).mkdir(parents=True)
        (tmp_path / "megatron_ssd" / name / "__init__.py").touch()
    (tmp_path / "megatron_ssd" / "__init__.py").touch()
    return tmp_path / "megatron_ssd"


def broken(package: Path) -> set[str]:
    """First words of the contracts that do not hold."""
    done = subprocess.run(
        [LINT_IMPORTS, "--no-cache"], cwd=package.parent, env={"PYTHONPATH": str(package.parent)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.rstrip(" )").endswith("BROKEN") or "BROKEN (" in line]
    assert (done.returncode == 0) == (not lines), done.stdout + done.stderr
    return {line.split()[0] for line in lines}


def test_layers_without_imports_hold(package):
    assert broken(package) == set()


@pytest.mark.parametrize(
    ("file", "line", "contracts"),
    [
        ("generation/x.py", "import megatron_ssd.evaluation", {"Data", "Generation"}),
        ("runtime/x.py", "import megatron_ssd.models", {"Data"}),
        ("errors/x.py", "import megatron_ssd.config", {"Data"}),
        ("newcomer.py", "", {"Data"}),
        ("report/x.py", "from megatron.core import parallel_state", {"Megatron-Core"}),
        ("generation/x.py", "import vllm", {"vLLM"}),
        ("evaluation/x.py", "import lm_eval", {"Lm-eval"}),
        ("training/x.py", "from omegaconf import OmegaConf", {"Hydra"}),
        ("training/x.py", "import hydra", {"Hydra"}),
        ("cli/x.py", "import tools.doctor", {"Nothing"}),
    ],
)
def test_an_import_against_the_rules_is_caught(package, file, line, contracts):
    (package / file).write_text(f"{line}\n")
    assert broken(package) == contracts


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("models/x.py", "import megatron_ssd.runtime"),
        ("dataset/x.py", "from megatron.core.datasets import indexed_dataset"),
        ("generation/vllm_engine.py", "import vllm"),
        ("cli/x.py", "from hydra import compose\nimport omegaconf"),
    ],
)
def test_what_the_rules_allow_passes(package, file, line):
    (package / file).write_text(f"{line}\n")
    assert broken(package) == set()
