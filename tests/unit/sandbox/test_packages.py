"""Tests for the packages and names that the sandbox provides to programs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.sandbox.container import find_package
from megatron_ssd.sandbox.sandbox import Program, Sandbox
from tests.helpers.sandboxed import LIMITS, call, run

LONG_LIMITS = {"cpu_seconds": 20.0, "wall_seconds": 100.0}


@pytest.fixture(scope="module", params=["bubblewrap", "rlimit_only"])
def with_packages(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A container of each kind with two packages."""
    with Sandbox(SandboxConfig(kind=request.param, packages=("numpy", "sortedcontainers"))) as container:
        container.start()
        yield container


def test_configured_packages_have_the_version_of_this_environment(with_packages: Sandbox):
    source = (
        "import numpy as np, sortedcontainers\n"
        "print(np.__version__, np.linalg.det(np.eye(50)), (np.ones((300, 300)) @ np.ones((300, 300))).sum())\n"
        "print(sortedcontainers.__version__, *sortedcontainers.SortedList([2, 1]))"
    )
    (output,) = run(with_packages, source, **LONG_LIMITS).outputs
    assert output == f"{version('numpy')} 1.0 27000000.0\n{version('sortedcontainers')} 1 2\n"


@pytest.mark.parametrize("name", ["torch", "vllm", "pyarrow", "transformers", "yaml", "six", "pip", "setuptools"])
def test_other_packages_cannot_be_imported(with_packages: Sandbox, name: str):
    for source in (f"import {name}", f"import numpy, {name}"):
        assert run(with_packages, source, **LONG_LIMITS).detail == f"ModuleNotFoundError: No module named '{name}'"


def test_files_of_other_packages_are_not_visible(sandbox: Sandbox):
    folder = find_package("numpy").folder
    source = f"import os\nprint(sorted(os.listdir({str(folder)!r})))"
    assert run(sandbox, source).outputs == ("['numpy', 'numpy.libs']\n",)
    assert "Read-only" in run(sandbox, f"open({str(folder / 'numpy' / 'x')!r}, 'w')").detail


def test_packages_are_imported_only_by_programs_that_ask_for_them(with_packages: Sandbox):
    source = "import sys\nprint([m for m in ('numpy', 'threading', 'sortedcontainers') if m in sys.modules])"
    assert run(with_packages, source).outputs == ("[]\n",)


def test_without_packages_there_is_no_numpy():
    with Sandbox(SandboxConfig(packages=())) as container:
        assert run(container, "import numpy").detail == "ModuleNotFoundError: No module named 'numpy'"


def test_numpy_uses_one_thread_and_little_memory(with_packages: Sandbox):
    source = (
        "import numpy as np\na = np.random.rand(400, 400)\nnp.linalg.svd(a)\n"
        "import threading\nprint(threading.active_count(), len(a))"
    )
    assert run(with_packages, source, memory_bytes=384 << 20, **LONG_LIMITS).outputs == ("1 400\n",)


@pytest.mark.parametrize(
    ("value", "written"),
    [("np.int64(3)", "3"), ("np.float32(0.5)", "0.5"), ("np.bool_(True)", "true"), ("[np.uint8(1)]", "[1]"),
     ("np.float64(2)", "2.0"), ("np.array([1, 2]).tolist()", "[1, 2]"), ("np.str_('a')", '"a"')],
)  # fmt: skip
def test_numpys_scalars_are_plain_results(with_packages: Sandbox, value: str, written: str):
    source = f"import numpy as np\ndef f(x):\n    return {value}"
    assert call(with_packages, source, ["1"], **LONG_LIMITS).outputs == (written,)


@pytest.mark.parametrize("value", ["np.array([1, 2])", "np.datetime64('2024-01-01')", "np.longdouble(1)"])
def test_other_objects_of_numpy_are_not_plain_results(with_packages: Sandbox, value: str):
    execution = call(with_packages, f"import numpy as np\ndef f(x):\n    return {value}", ["1"], **LONG_LIMITS)
    assert execution.ending == "runtime_error"
    assert "not a plain value" in execution.detail


@pytest.mark.parametrize(
    ("name", "message"),
    [("no_such_package", "is not installed in this environment"), ("json", "is part of Python itself")],
)
def test_a_package_that_cannot_be_provided_is_an_error(name: str, message: str):
    with pytest.raises(UserError, match=f"evaluation.sandbox.packages: {name}.*{message}"):
        Sandbox(SandboxConfig(packages=("numpy", name)))


@pytest.mark.parametrize("name", ["", "numpy.linalg", "../numpy", "a b"])
def test_a_name_that_cannot_be_imported_is_an_error(name: str):
    with pytest.raises(UserError, match="can import"):
        SandboxConfig(packages=(name,))


def test_a_package_may_be_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "single_module.py").write_text("answer = 42")
    (tmp_path / "other_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with Sandbox(SandboxConfig(packages=("single_module",))) as container:
        assert run(container, "import single_module\nprint(single_module.answer)").outputs == ("42\n",)
        assert "No module named" in run(container, "import other_module").detail


def test_shared_libraries_may_have_the_name_of_the_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("picture", "better_picture.libs", "other.libs", "better_picture-1.0.dist-info"):
        (tmp_path / folder).mkdir()
    (tmp_path / "picture/__init__.py").write_text("")
    (tmp_path / "better_picture-1.0.dist-info/METADATA").write_text("Name: better-picture\nVersion: 1.0\n")
    (tmp_path / "better_picture-1.0.dist-info/RECORD").write_text("picture/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_package("picture").paths == (tmp_path / "picture", tmp_path / "better_picture.libs")


class TestPrelude:
    NAMES = "ascii_lowercase, Counter, heappush, bisect_left, sqrt, lru_cache, List, reduce, datetime.date, gcd"

    def test_the_lcb_prelude_has_the_names_of_livecodebenchs_checker(self, sandbox: Sandbox):
        assert run(sandbox, f"{self.NAMES}\nprint(1)").outputs == ("1\n",)
        for absent in ("os", "np", "threading"):
            assert run(sandbox, absent).detail == f"NameError: name '{absent}' is not defined"
        # ``from datetime import *`` imports a class of this name, and the module is not imported after it.
        assert run(sandbox, "print(time)").outputs == ("<class 'datetime.time'>\n",)

    @pytest.mark.parametrize("name", [name.strip() for name in NAMES.split(",")] + ["math", "sys", "typing"])
    def test_without_a_prelude_no_name_is_imported(self, name: str, sandbox: Sandbox):
        execution = sandbox.execute(Program(source=name, form="stdin", prelude="none"), [""], LIMITS)
        assert execution.detail.startswith(f"NameError: name '{name.partition('.')[0]}' is not defined")
