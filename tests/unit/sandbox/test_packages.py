"""What programs may import besides the standard library, and which names they have without import."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from megatron_ssd.config.evaluation import SandboxConfig
from megatron_ssd.errors import UserError
from megatron_ssd.sandbox.container import find_package
from megatron_ssd.sandbox.sandbox import Sandbox
from tests.helpers.sandboxed import call, run

SLOW_MACHINE = {"cpu_seconds": 20.0, "wall_seconds": 100.0}


@pytest.fixture(scope="module")
def default() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig()) as container:
        container.start()
        yield container


@pytest.fixture(scope="module", params=["bubblewrap", "rlimit_only"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(kind=request.param, packages=("numpy", "sortedcontainers"))) as container:
        container.start()
        yield container


def test_named_packages_work_in_the_version_of_this_environment(sandbox: Sandbox):
    source = (
        "import numpy as np, sortedcontainers\n"
        "print(np.__version__, np.linalg.det(np.eye(50)), (np.ones((300, 300)) @ np.ones((300, 300))).sum())\n"
        "print(sortedcontainers.__version__, *sortedcontainers.SortedList([2, 1]))"
    )
    (output,) = run(sandbox, source, **SLOW_MACHINE).outputs
    assert output == f"{version('numpy')} 1.0 27000000.0\n{version('sortedcontainers')} 1 2\n"


@pytest.mark.parametrize("name", ["torch", "vllm", "pyarrow", "transformers", "yaml", "six", "pip", "setuptools"])
def test_nothing_beside_them_can_be_imported(sandbox: Sandbox, name: str):
    for source in (f"import {name}", f"import numpy, {name}"):
        assert run(sandbox, source, **SLOW_MACHINE).detail == f"ModuleNotFoundError: No module named '{name}'"


def test_nothing_beside_them_is_there_to_be_found(default: Sandbox):
    folder = find_package("numpy").folder
    source = f"import os\nprint(sorted(os.listdir({str(folder)!r})))"
    assert run(default, source).outputs == ("['numpy', 'numpy.libs']\n",)
    assert "Read-only" in run(default, f"open({str(folder / 'numpy' / 'x')!r}, 'w')").detail


def test_it_is_not_imported_for_programs_that_do_not_ask(sandbox: Sandbox):
    source = "import sys\nprint([m for m in ('numpy', 'threading', 'sortedcontainers') if m in sys.modules])"
    assert run(sandbox, source).outputs == ("[]\n",)


def test_none_named_is_none_found():
    with Sandbox(SandboxConfig(packages=())) as container:
        assert run(container, "import numpy").detail == "ModuleNotFoundError: No module named 'numpy'"


def test_numpy_stays_one_thread_within_the_usual_memory(sandbox: Sandbox):
    source = (
        "import numpy as np\na = np.random.rand(400, 400)\nnp.linalg.svd(a)\n"
        "import threading\nprint(threading.active_count(), len(a))"
    )
    assert run(sandbox, source, memory_bytes=384 << 20, **SLOW_MACHINE).outputs == ("1 400\n",)


@pytest.mark.parametrize(
    ("value", "written"),
    [("np.int64(3)", "3"), ("np.float32(0.5)", "0.5"), ("np.bool_(True)", "true"), ("[np.uint8(1)]", "[1]"),
     ("np.float64(2)", "2.0"), ("np.array([1, 2]).tolist()", "[1, 2]"), ("np.str_('a')", '"a"')],
)  # fmt: skip
def test_numpys_scalars_are_plain_results(sandbox: Sandbox, value: str, written: str):
    source = f"import numpy as np\ndef f(x):\n    return {value}"
    assert call(sandbox, source, ["1"], **SLOW_MACHINE).outputs == (written,)


@pytest.mark.parametrize("value", ["np.array([1, 2])", "np.datetime64('2024-01-01')", "np.longdouble(1)"])
def test_what_is_no_plain_value_stays_an_error(sandbox: Sandbox, value: str):
    execution = call(sandbox, f"import numpy as np\ndef f(x):\n    return {value}", ["1"], **SLOW_MACHINE)
    assert execution.ending == "runtime_error"
    assert "not a plain value" in execution.detail


@pytest.mark.parametrize(
    ("name", "said"),
    [("no_such_package", "is not installed in this environment"), ("json", "is part of Python itself")],
)
def test_a_package_that_cannot_be_lent_is_one_line(name: str, said: str):
    with pytest.raises(UserError, match=f"evaluation.sandbox.packages: {name}.*{said}"):
        Sandbox(SandboxConfig(packages=("numpy", name)))


@pytest.mark.parametrize("name", ["", "numpy.linalg", "../numpy", "a b"])
def test_a_name_that_no_program_could_import(name: str):
    with pytest.raises(UserError, match="can import"):
        SandboxConfig(packages=(name,))


def test_a_module_that_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lent_module.py").write_text("answer = 42")
    (tmp_path / "other_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with Sandbox(SandboxConfig(packages=("lent_module",))) as container:
        assert run(container, "import lent_module\nprint(lent_module.answer)").outputs == ("42\n",)
        assert "No module named" in run(container, "import other_module").detail


@pytest.fixture(scope="module")
def plain() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(prelude="none")) as container:
        container.start()
        yield container


class TestPrelude:
    NAMES = "ascii_lowercase, Counter, heappush, bisect_left, sqrt, lru_cache, List, reduce, datetime.date, gcd"

    def test_lcb_is_the_names_of_its_checker(self, default: Sandbox):
        assert run(default, f"{self.NAMES}\nprint(1)").outputs == ("1\n",)
        for absent in ("os", "np", "threading"):
            assert run(default, absent).detail == f"NameError: name '{absent}' is not defined"
        # ``from datetime import *`` gives a class of this name, and nothing imports the module after it.
        assert run(default, "print(time)").outputs == ("<class 'datetime.time'>\n",)

    @pytest.mark.parametrize("name", [name.strip() for name in NAMES.split(",")] + ["math", "sys", "typing"])
    def test_none_is_plain_python(self, name: str, plain: Sandbox):
        assert run(plain, name).detail.startswith(f"NameError: name '{name.partition('.')[0]}' is not defined")
