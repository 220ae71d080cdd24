"""Grades a file of completions, for ``tools/grade.py``.

A file has JSON lines, also gzipped; blank lines are skipped. A line is an object with an id (``question_id``,
``task_id`` or ``problem_id``) and one text. Lines of the same problem are its samples 0, 1, ... in the order of the
file.
- ``code``, or ``solution`` (evalplus), is the program as it is. ``code_list`` (LiveCodeBench) is a list of them.
- ``response`` is a chat model's answer. The rule of the benchmark finds the program (``grading.rules``).
- ``completion`` continues the problem's prompt, if it has one, and runs behind it as it is. Only a text that does not
  parse there, but has fences, is read as a ``response``.

The folder of verdicts and summary is a stage like any other: written as ``OUT.partial``, resumed after a SIGKILL, and
published in one step with a manifest that has the hashes of both files.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.hashing import hash_json, sha256_file
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.evaluation import default_ks
from megatron_ssd.config.problems import BenchmarkSetConfig
from megatron_ssd.config.tools import GradeConfig
from megatron_ssd.errors import UserError
from megatron_ssd.formatting import aligned
from megatron_ssd.grading.metrics import Bootstrap, no_code_causes, problem_scores
from megatron_ssd.grading.pool import Grader, Submission, read_verdicts
from megatron_ssd.grading.references import is_flawed
from megatron_ssd.grading.rules import program_of_response, prompt_of
from megatron_ssd.problems.assert_scripts import read_assert_scripts
from megatron_ssd.problems.errata import Errata, apply_errata
from megatron_ssd.problems.livecodebench import BenchmarkKeys, read_benchmark
from megatron_ssd.problems.table import open_table
from megatron_ssd.progress import progress
from megatron_ssd.prompts.entry_point import parses
from megatron_ssd.prompts.extract import Extraction
from megatron_ssd.schema import Problem, Verdict

log = logging.getLogger(__name__)

VERDICTS, SUMMARY = "verdicts.jsonl", "summary.json"
ID_KEYS = ("question_id", "task_id", "problem_id")
TEXT_KEYS = ("completion", "response", "code", "solution", "code_list")
_MBPP = "Mbpp/"  # evalplus's ids are those of MBPP behind this


def run_grade(config: GradeConfig) -> None:
    """Grade the samples, or resume an interrupted run, then print a table to standard output.

    Raises:
        UserError: a file cannot be read, a record is wrong, or the sandbox cannot start.
    """
    all_problems = {problem.id: problem for problem in read_problems(config)}
    counted, errata = apply_errata(list(all_problems.values()), config.errata)
    problems = {problem.id: problem for problem in counted}
    samples = Path(config.samples)
    counts = Counter({id_: count for id_, count in count_samples(samples, all_problems).items() if id_ in problems})
    if not counts:
        raise UserError(f"samples = {samples}", rule="all of their problems are in LiveCodeBench's errata",
                        fix="keep them with errata=keep")  # fmt: skip
    stage = _stage(config, problems, samples)
    if not stage.is_current():
        asked = [problems[problem_id] for problem_id in counts]
        with Grader(asked, config.sandbox_config) as grader:
            work = stage.begin()
            bar: tqdm[None] = progress(total=counts.total(), desc="grading", unit="program")
            with bar:
                done = len(read_verdicts(work / VERDICTS))
                if done:
                    log.info("%s: %d of %d programs are already graded", stage.name, done, counts.total())
                submissions = (one for one in read_submissions(samples, all_problems) if one.problem_id in problems)
                verdicts = grader.grade_programs(submissions, work / VERDICTS, bar.update)
        summary = {**summarise(problems, verdicts), "errata": dataclasses.asdict(errata)}
        write_atomically(work / SUMMARY, json.dumps(summary, indent=2) + "\n")
        statuses = summary["statuses"]
        stage.publish(counts={"problems": len(asked), "programs": counts.total(), **statuses},
                      facts={"sandbox": config.sandbox})  # fmt: skip
    print(table(json.loads((stage.final / SUMMARY).read_text(encoding="utf-8"))))


def read_problems(config: GradeConfig) -> list[Problem]:
    """The problems of the benchmark's file. Raises ``UserError``."""
    if config.format == "lcb":
        section = BenchmarkSetConfig(format="livecodebench", path=config.problems, start_date=config.start_date,
                                  end_date=config.end_date)  # fmt: skip
        return read_benchmark(section, BenchmarkKeys("problems", "start_date", "end_date"))
    return read_assert_scripts(config.format, Path(config.problems))


def count_samples(path: Path, problems: Mapping[str, Problem]) -> Counter[str]:
    """Number of samples per problem. Reads and checks every line.

    Raises:
        UserError: the file is missing or empty, a line does not have one id and one text, or its problem is unknown.
    """
    counts = Counter(problem_id for problem_id, _, _ in _records(path, problems))
    if not counts:
        raise UserError(f"samples = {path}", rule="contains no record", fix="name another file")
    return counts


def read_submissions(path: Path, problems: Mapping[str, Problem]) -> Iterator[Submission]:
    """The program of each line, one at a time. Raises ``UserError`` as ``count_samples`` does."""
    seen: Counter[str] = Counter()
    for problem_id, key, text in _records(path, problems):
        found = program_of(key, text, problems[problem_id])
        yield Submission(
            problem_id=problem_id, sample_index=seen[problem_id], source=found.program, note=found.cause or ""
        )
        seen[problem_id] += 1


def program_of(key: str, text: str, problem: Problem) -> Extraction:
    """The program in ``text``, the value of ``key`` in a line; see the module."""
    if key == "response":
        return program_of_response(problem, text)
    program = prompt_of(problem) + text if key == "completion" else text
    if key == "completion" and "```" in text and not parses(program):
        found = program_of_response(problem, text)
        if found.program is not None:
            return found
    return Extraction(program=program) if program.strip() else Extraction(cause="empty response")


def _records(path: Path, problems: Mapping[str, Problem]) -> Iterator[tuple[str, str, str]]:
    """(problem id, key of the text, text) of each sample."""
    if not path.is_file():
        raise UserError(f"samples = {path}", rule="is not a file", fix="name a file of JSON lines")
    for row in open_table(str(path), key="samples", columns_fix="fix that line").rows(None):
        _, identity = _one(row.values, ID_KEYS, row.where, "an id")
        key, value = _one(row.values, TEXT_KEYS, row.where, "a text")
        texts = value if key == "code_list" and isinstance(value, list) else [value]
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"{row.where}: {key} = {str(text)[:60]!r}", rule="must be text", fix="fix that line")
            yield _known(str(identity), problems, row.where), key, text


def _known(identity: str, problems: Mapping[str, Problem], where: str) -> str:
    """The id among ``problems`` that ``identity`` names."""
    for name in (identity, identity.removeprefix(_MBPP), _MBPP + identity):
        if name in problems:
            return name
    raise UserError(
        f"{where}: {identity}",
        rule="is not a problem of the benchmark's file or window",
        fix=f"its {len(problems)} problems have ids like {next(iter(problems))}",
    )


def _one(record: dict[str, Any], keys: tuple[str, ...], where: str, what: str) -> tuple[str, Any]:
    """The only one of ``keys`` that ``record`` has, and its value."""
    found = [key for key in keys if key in record]
    if len(found) > 1:
        raise UserError(f"{where}: a record with {', '.join(map(str, record))}",
                        rule=f"has {what} under {' and '.join(found)}, and only one can count",
                        fix="remove all but one of them")  # fmt: skip
    if not found:
        raise UserError(
            f"{where}: a record with {', '.join(map(str, record)) or 'nothing'}",
            rule=f"needs {what} under one of {', '.join(keys)}",
            fix="fix that line",
        )
    return found[0], record[found[0]]


def summarise(problems: Mapping[str, Problem], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Scores and counts of one file's verdicts, as JSON.

    pass@k is over the problems that have samples, for each k that all of them have. A problem on which the checker
    failed too often for a k is left out for that k.
    """
    samples = Counter(verdict.problem_id for verdict in verdicts)
    ids, bootstrap = list(samples), Bootstrap()
    groups = {"all": np.ones(len(ids), dtype=bool)}
    for name in sorted({problems[problem_id].difficulty or "" for problem_id in ids} - {""}):
        groups[name] = np.array([problems[problem_id].difficulty == name for problem_id in ids])
    ks = default_ks(min(samples.values()))
    scores = {k: problem_scores(verdicts, ids, k) for k in ks}
    summary = {
        "problems": len(problems),
        "problems_without_samples": len(problems) - len(ids),
        "programs": len(verdicts),
        "samples_per_problem": [min(samples.values()), max(samples.values())],
        "statuses": dict(sorted(Counter(verdict.status for verdict in verdicts).items())),
        "flawed": {v.problem_id: v.detail for v in verdicts if is_flawed(v)},
        "no_code_causes": no_code_causes(verdicts),
        "confidence": bootstrap.confidence,
        "pass_at_k": {name: {k: bootstrap.mean(scores[k][mask]) for k in ks} for name, mask in groups.items()},
    }
    found: dict[str, Any] = json.loads(msgspec.json.encode(summary))  # an estimate that is NaN is null
    return found


def table(summary: dict[str, Any]) -> str:
    """The summary as text for a terminal."""
    by_group = summary["pass_at_k"]
    ks = list(by_group["all"])
    lines = [["", "problems", *(cell for k in ks for cell in (f"pass@{k}", "interval"))]]
    for name, by_k in by_group.items():
        cells = [cell for k in ks for cell in _cells(by_k[k])]
        lines.append([name, str(by_k[ks[0]]["num_problems"]), *cells])
    num_problems, (low, high) = by_group["all"][ks[0]]["num_problems"], summary["samples_per_problem"]
    each = str(low) if low == high else f"{low} to {high}"
    share = f"{100 * summary['confidence']:g} % intervals over problems"
    text = [*aligned(lines), "", f"per cent of {num_problems} problems, {each} programs each; {share}"]
    text.append(_counts({status.replace("_", " "): count for status, count in summary["statuses"].items()}))
    if summary.get("no_code_causes"):  # folders of earlier versions lack it
        text.append(f"no code: {_counts(summary['no_code_causes'])}")
    if "errata" in summary and (line := Errata(**summary["errata"]).line):  # folders of earlier versions lack it
        text.append(line)
    text += [f"{problem_id}: {flaw}; it is not in the scores" for problem_id, flaw in summary.get("flawed", {}).items()]
    if summary["problems_without_samples"]:
        text.append(f"{summary['problems_without_samples']} problems have no sample and are not in the scores")
    if summary["statuses"].get("infrastructure_error"):
        text.append("programs with infrastructure error are not in the scores: the checker failed, not the program")
    return "\n".join(text)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _cells(estimate: dict[str, Any]) -> tuple[str, str]:
    if estimate["value"] is None:
        return "none", ""
    return f"{100 * estimate['value']:.1f}", f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}"


def _stage(config: GradeConfig, problems: Mapping[str, Problem], samples: Path) -> Stage:
    out = Path(config.out)
    return Stage(
        name=out.name,
        run_dir=out.parent,
        config={"format": config.format, "sandbox": config.sandbox_config.identity},
        inputs={
            "problems": hash_json([problem.to_json() for problem in problems.values()]),
            "samples": sha256_file(samples),
        },
        replace=config.replace,
        key="out",
        made_by="tools/grade.py",
    )
