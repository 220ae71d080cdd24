"""Runs tests and measurements on one GPU, most important first, within the minutes of one call.

    benchmarks/gpu.sh --minutes 8 --out OUT
    benchmarks/gpu.sh --device cpu --tiny --out OUT         # a rehearsal without a GPU
    benchmarks/gpu.sh --parts recompute compile --out OUT   # these parts only, in this order

Each case is printed when it ends, and ``OUT/gpu.json`` has grown by it (``gpu_results``). What it has already is left
out, so the same command goes on where the time of the last call ended; what failed runs again. A case that no longer
fits is named, and smaller ones after it may still run. The parts:

    fp32       losses on this device against those of the CPU
    speed, fp8, recompute, compile: see ``gpu_cases``
    sampling   vLLM: samples, repeats and scores, against Transformers
    loop       the demo script by script, with a training that is killed and resumed
    tests      the other tests of ``tests/gpu``
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_cases import Case, Order, Settings, cases
from benchmarks.gpu_results import ALL_TESTS, Record, Results, described, line
from megatron_ssd.config.cluster import Device
from megatron_ssd.errors import UserError, require
from megatron_ssd.process import ChildDeathError, ChildProcess, child_environment, die_with_parent

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("fp32", "speed", "sampling", "loop", "tests", "fp8", "recompute", "compile")
# Files of tests/gpu; the least and the most time for all of them, in limits of a case. A stopped loop starts again.
_TESTS = {
    "fp32": (("test_gpu_fp32.py",), 1, 2),
    "sampling": (("test_gpu_sampling.py",), 2, 5),
    "loop": (("test_gpu_loop.py",), 5, 8),
    "tests": (("test_gpu_training.py", "test_gpu_fp8.py", "test_gpu_conversion.py"), 1, 5),
}
_SPARE = 5.0  # seconds at the end of the time, to stop what runs
_SHARE = 0.75  # of a case's seconds, after which it starts no further step


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to run: a measured case, or the tests of a part.

    Args:
        part: the part of the results.
        case: the name of its record.
        least: it is not started with fewer seconds left than this.
        limit: it is stopped after this many seconds.
        run: returns its record, within the seconds that it is given.
    """

    part: str
    case: str
    least: float
    limit: float
    run: Callable[[float], Record]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The time of a call, which ends at ``end`` of ``clock``, in seconds."""

    end: float
    clock: Callable[[], float] = time.time

    def left(self) -> float:
        """Seconds left."""
        return self.end - self.clock()

    def grant(self, item: Item) -> float | None:
        """The seconds that ``item`` gets, or None if too few are left."""
        return min(item.limit, self.left()) if self.left() >= item.least else None


def run_all(items: Iterable[Item], budget: Budget, results: Results) -> list[Item]:
    """Run the items that have no result and still fit, in order; returns those that do not fit."""
    too_late = []
    for item in items:
        if results.is_done(item.part, item.case):
            continue
        seconds = budget.grant(item)
        if seconds is None:
            too_late.append(item)
            continue
        record = item.run(seconds)
        results.add(item.part, record)
        print(f"{budget.left():4.0f} s left  {item.part:10s}{line(record, results.records(item.part))}", flush=True)
    return too_late


class Measurer:
    """The process that measures cases. It is started again after a case that failed or took too long."""

    def __init__(self, settings: Settings, budget: Budget) -> None:
        self._settings, self._budget = settings, budget
        self._child: ChildProcess | None = None

    def start(self) -> dict[str, str]:
        """Start the process, and return the facts about this machine.

        Raises:
            UserError: there is no such device, or the process did not start in time.
        """
        seconds = self._budget.left()
        require(seconds > 0, "--minutes", rule="the time is over before anything has started", fix="give it more")
        self._child = ChildProcess("benchmarks.gpu_measure")
        self._child.send(self._settings)
        found = self._answer(seconds)
        if "failed" in found:
            self.close()
            raise UserError(f"--device {self._settings.device}", fix="read the error above",
                            rule=f"the process that measures has not started: {found['failed']}")  # fmt: skip
        return found

    def measure(self, case: Case, seconds: float) -> Record:
        """The record of ``case``."""
        try:
            if self._child is None:
                self.start()
        except UserError as error:
            return {"case": case.name, "failed": str(error)}
        assert self._child is not None
        self._child.send(Order(case=case, seconds=_SHARE * seconds))
        record = {"case": case.name, **self._answer(seconds)}
        if "failed" in record:  # an error of CUDA stays in its process
            self.close()
        return record

    def _answer(self, seconds: float) -> Record:
        assert self._child is not None
        if not self._child.connection.poll(seconds):
            return {"failed": f"no answer within {seconds:.0f} s"}
        try:
            return dict(self._child.receive())
        except ChildDeathError as death:
            return {"failed": str(death)}

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
        self._child = None


def run_tests(part: str, seconds: float, *, path: Path, device: Device, limit: float) -> Record:
    """Run the tests of a part, which write their own records to ``path``, and return the record of all of them.

    Args:
        limit: seconds of a test that has no limit of its own.
    """
    files, *_ = _TESTS[part]
    processes = len(files) if device == "cuda" and len(files) > 1 else 0  # 0 is this one
    command = [sys.executable, "-m", "pytest", "-v", "--no-summary", "-p", "benchmarks.gpu_tests", "-p",
               "no:cacheprovider", f"--timeout={limit:.0f}", f"--gpu-results={path}", f"--gpu-part={part}",
               f"--numprocesses={processes}",
               *(f"tests/gpu/{file}" for file in files)]  # fmt: skip
    environment = {**child_environment(), "MEGATRON_SSD_GPU_TESTS_ON": device}
    started = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=die_with_parent, process_group=0) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    records = [record for record in Results(path).records(part) if record["case"] != ALL_TESTS]
    counts = Counter(key for record in records for key in ("passed", "failed", "skipped") if key in record)
    text = ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped") if name in counts)
    summary = {"case": ALL_TESTS, "seconds": round(time.monotonic() - started, 1)}
    if status < 0:
        return {**summary, "failed": f"stopped after {seconds:.0f} s: {text or 'no test ended'}"}
    # With ExitCode.NO_TESTS_COLLECTED, an earlier call has run them all.
    return {**summary, "passed" if status in (0, 5) and "failed" not in counts else "failed": text or "no test ran"}


def items(
    parts: Sequence[str], measurer: Measurer, path: Path, *, device: Device, tiny: bool, limit: float
) -> Iterator[Item]:
    """What to run for ``parts``, in their order; ``limit`` is the most seconds of a measured case or of a test."""
    measured = cases(tiny=tiny, device=device)
    for part in parts:
        if part in _TESTS:
            run_part = functools.partial(run_tests, part, path=path, device=device, limit=limit)
            _, least, most = _TESTS[part]
            yield Item(part=part, case=ALL_TESTS, least=least * limit, limit=most * limit, run=run_part)
        for case in measured:
            if case.part == part:
                measure = functools.partial(measurer.measure, case)
                yield Item(part=part, case=case.name, least=limit, limit=limit, run=measure)


def main() -> None:
    """Run what fits in the time; exits with status 1 if something failed."""
    options = argparse.ArgumentParser(
        prog="benchmarks/gpu.sh",
        description=(__doc__ or "").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--site", metavar="FOLDER", help="import from the archives (*.tar.xz) in this folder first")
    options.add_argument(
        "--out", type=Path, metavar="OUT", default=Path("gpu-results"), help="folder of the results (gpu-results)"
    )
    options.add_argument(
        "--minutes", type=_positive, metavar="M", default=8, help="time of this call, in which it ends (8)"
    )
    options.add_argument(
        "--limit", type=_positive, metavar="S", default=40, help="most seconds of a measured case or of a test (40)"
    )
    options.add_argument(
        "--parts", nargs="+", choices=PARTS, metavar="PART", default=PARTS, help="run these, in this order (all)"
    )
    options.add_argument("--again", action="store_true", help="forget the results of these parts first")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for a rehearsal (cuda)")
    options.add_argument("--tiny", action="store_true", help="use tiny models, as the tests do")
    options.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    arguments = options.parse_args()
    try:
        sys.exit(run(arguments))
    except UserError as error:
        sys.exit(f"error: {error}")


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Run what the command line asks for, and return the exit status.

    Raises:
        UserError: the device cannot be used, or the folder has results of another one.
    """
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "gpu.json")
    budget = Budget(end=arguments.began + 60 * arguments.minutes - _SPARE)
    measurer = Measurer(Settings(device=arguments.device, out=out), budget)
    with contextlib.closing(measurer):
        results.describe(measurer.start())
        if arguments.again:
            results.forget(arguments.parts)
        print(described(results.content()), flush=True)
        plan = items(arguments.parts, measurer, out / "gpu.json", device=arguments.device, tiny=arguments.tiny,
                     limit=arguments.limit)  # fmt: skip
        too_late = run_all(plan, budget, results)
    for item in too_late:
        print(f"no time left for {item.part}: {item.case}")
    failed = [(part, one) for part in arguments.parts for one in results.records(part) if "failed" in one]
    for part, record in failed:
        print(f"failed in {part}: {record['case']}")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
