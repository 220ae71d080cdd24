"""Counts what each rule of extraction finds in stored responses.

    python -m benchmarks.extraction eval/NAME/generations/base/*.jsonl
    python -m benchmarks.extraction --format humaneval --problems HumanEval.jsonl.gz samples.jsonl

A line of a file has ``response`` and an id. ``entry_point`` needs the problems; it is counted only if they are given.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from megatron_ssd.formatting import aligned
from megatron_ssd.grading.grade_file import ID_KEYS
from megatron_ssd.problems.assert_scripts import FORMATS, read_assert_scripts
from megatron_ssd.problems.table import open_table
from megatron_ssd.prompts.extract import Extraction, ExtractionRule, extract_program
from megatron_ssd.schema import Problem

RULES: tuple[ExtractionRule, ...] = ("last_block", "lcb", "entry_point")


def extractions(files: list[Path], problems: dict[str, Problem]) -> Iterator[dict[ExtractionRule, Extraction]]:
    """What each rule finds, response by response."""
    for file in files:
        for row in open_table(str(file), key="samples", columns_fix="").rows(None):
            problem = problems.get(str(next((row.values[key] for key in ID_KEYS if key in row.values), "")))
            yield {
                rule: extract_program(
                    row.values["response"], rule=rule, entry_point=problem.function_name if problem else None
                )
                for rule in (RULES if problem else RULES[:2])
            }


def main() -> None:
    """Print a table with a line for each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="+")
    parser.add_argument("--format", choices=FORMATS)
    parser.add_argument("--problems", type=Path)
    options = parser.parse_args()
    problems = read_assert_scripts(options.format, options.problems) if options.problems else []
    found = list(extractions(options.samples, {problem.id: problem for problem in problems}))
    table = [["rule", "responses", "programs", "other than last_block", "causes of no program"]]
    for rule in RULES:
        mine = [(each[rule], each["last_block"]) for each in found if rule in each]
        causes = Counter(one.cause for one, _ in mine if one.cause is not None)
        programs = sum(one.program is not None for one, _ in mine)
        others = sum((one.program or "").strip() != (last.program or "").strip() for one, last in mine)
        shown = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
        table.append([rule, str(len(mine)), str(programs), str(others), shown or "none"])
    print("\n".join(aligned(table)))


if __name__ == "__main__":
    main()
