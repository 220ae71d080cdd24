"""Tests which rows become problems, in which order, and what is recorded about the others."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ssd.errors import UserError
from megatron_ssd.problems.selection import normalise
from tests.helpers.jsonl import write_jsonl
from tests.helpers.paths import RSTAR, needs
from tests.helpers.problem_files import COLUMNS, Chosen, choose, config_of, evaluation_set, parquet, row, rstar_row


def of_rows(tmp_path: Path, rows: list[dict[str, Any]], **problems: Any) -> Chosen:
    return choose(config_of(tmp_path / "run", parquet(tmp_path / "rows", rows), **problems))


def test_normalise_joins_any_white_space() -> None:
    assert normalise("  a\t b\n\n c\u00a0d ") == "a b c d"


def test_the_form_follows_the_starter_code(tmp_path: Path) -> None:
    rows = [rstar_row(1, "p"), rstar_row(2, "q", ""), rstar_row(3, "r", " \n"), rstar_row(4, "s", "class Solution:")]
    assert [(problem.form, problem.starter_code) for problem in of_rows(tmp_path, rows).problems] == [
        ("stdin", ""), ("stdin", ""), ("stdin", ""), ("function", "class Solution:"),
    ]  # fmt: skip


@pytest.mark.parametrize("null", [float("nan"), "None", "nan", "NaN ", "null", "NULL", "<NA>"])
def test_what_programs_write_for_null_is_no_starter_code(tmp_path: Path, null: Any) -> None:
    rows = [rstar_row(1, "p", null), *([rstar_row(2, null)] if isinstance(null, str) else [])]
    assert [(problem.form, problem.starter_code) for problem in of_rows(tmp_path, rows).problems] == [("stdin", "")]


@pytest.mark.parametrize("name", ["statement", "question", "text", "prompt"])
def test_the_text_is_in_a_column_with_a_usual_name(tmp_path: Path, name: str) -> None:
    rows = [
        {"answer": "x", name: "add two", "starter_code": "def f():"},
        {"answer": "y", name: "double", "starter_code": ""},
    ]
    chosen = of_rows(tmp_path, rows, name="rows").problems
    assert [(problem.id, problem.statement, problem.form) for problem in chosen] == [
        ("row-1", "add two", "function"), ("row-2", "double", "stdin"),
    ]  # fmt: skip


def test_a_file_without_a_usual_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"columns answer, task.*usual name.*name it in problems\.columns\.statement"):
        of_rows(tmp_path, [{"answer": "x", "task": "add two"}], name="rows")


def test_every_row_is_kept_or_recorded_with_its_reason(tmp_path: Path) -> None:
    rows = [
        rstar_row(1, "a b"), rstar_row(2, "a  b"), rstar_row(3, " "), rstar_row(4, None), rstar_row(5, "nul\0"),
        rstar_row(6, "c", is_passed=False), rstar_row(7, "c"), rstar_row(8, "d"), rstar_row(9, "e"),
    ]  # fmt: skip
    chosen = of_rows(tmp_path, rows, only_passed=True, limit=2)
    assert [problem.id for problem in chosen.problems] == ["seed_1", "seed_7"]
    assert chosen.dropped == [
        {"row": 2, "id": "seed_2", "reason": "duplicate", "like": 1},
        {"row": 3, "id": "seed_3", "reason": "no_text"},
        {"row": 4, "id": "seed_4", "reason": "no_text"},
        {"row": 5, "id": "seed_5", "reason": "bad_text"},
        {"row": 6, "id": "seed_6", "reason": "not_passed"},
        {"row": 8, "id": "seed_8", "reason": "over_limit"},
        {"row": 9, "id": "seed_9", "reason": "over_limit"},
    ]
    assert chosen.manifest.dropped == {"duplicate": 1, "no_text": 2, "bad_text": 1, "not_passed": 1, "over_limit": 2}
    assert chosen.manifest.counts == {"rows": 9, "problems": 2, "contaminated_and_kept": 0}


def test_repeated_ids_stay_unique(tmp_path: Path) -> None:
    rows = [rstar_row(1, "a"), rstar_row(1, "a"), rstar_row(2, "b"), rstar_row(1, "c")]
    chosen = of_rows(tmp_path, rows, deduplicate=False)
    assert [problem.id for problem in chosen.problems] == ["seed_1", "seed_1#2", "seed_2", "seed_1#3"]


def test_a_numbered_id_may_be_another_problems_own(tmp_path: Path) -> None:
    rows = [rstar_row(1, text, question_id=id_) for text, id_ in (("a", "x"), ("b", "x"), ("c", "x#2"), ("d", "x"))]
    assert [problem.id for problem in of_rows(tmp_path, rows).problems] == ["x", "x#2", "x#2#2", "x#3"]


def test_a_hit_belongs_to_its_row_and_not_to_another_row_with_the_same_id(tmp_path: Path) -> None:
    text = "Count the boats that came home this evening, and print their number with the sum of their loads in tons."
    sets = evaluation_set(tmp_path / "eval.jsonl", text)
    rows = [rstar_row(1, "a"), rstar_row(1, text), rstar_row(1, "b")]
    chosen = of_rows(tmp_path, rows, contamination={"sets": sets, "on_hit": "drop"})
    assert [problem.id for problem in chosen.problems] == ["seed_1", "seed_1#3"]
    assert [(hit["problem_id"], hit["kept"]) for hit in chosen.hits] == [("seed_1#2", False)]
    assert chosen.dropped == [{"row": 2, "id": "seed_1#2", "reason": "contaminated"}]


def test_the_names_of_the_columns_are_configurable(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl.gz", [row("x", name="first", starter="def f(): ..."), row("y", ok=False)])
    section = {"name": "rows", "columns": COLUMNS, "only_passed": True}
    (problem,) = choose(config_of(tmp_path / "run", path, **section)).problems
    assert (problem.id, problem.statement, problem.form, problem.source) == ("first", "x", "function", "rows")


def test_without_an_id_column_problems_are_named_after_their_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [row("x"), row("x"), row("y")])
    chosen = choose(config_of(tmp_path / "run", path, name="rows", columns={"statement": "text"}))
    assert [problem.id for problem in chosen.problems] == ["row-1", "row-3"]


def test_the_shuffled_order_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [rstar_row(number, f"problem {number}") for number in range(40)]
    orders = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        path = parquet(tmp_path / f"rows-{name}", order)
        chosen = choose(config_of(tmp_path / name, path, order="shuffled", limit=10))
        orders.append([problem.id for problem in chosen.problems])
    assert orders[0] == orders[1]
    assert orders[0] != [f"seed_{number}" for number in range(10)]


def test_the_selection_hash_is_equal_exactly_for_equal_prompts(tmp_path: Path) -> None:
    def line(name: str, rows: list[dict[str, Any]]) -> str:
        chosen = choose(config_of(tmp_path / name, parquet(tmp_path / f"rows-{name}", rows)))
        return str(chosen.manifest.facts["selection"]).partition("selection ")[2]

    rows = [rstar_row(1, "a b"), rstar_row(2, "c")]
    assert line("one", rows) == line("spaced", [rstar_row(7, "a   b", response="other"), rstar_row(8, " c ")])
    assert line("one more", rows) != line("other", [rstar_row(1, "a b"), rstar_row(2, "d")])
    assert line("again", rows) != line("with code", [rstar_row(1, "a b", "def f(x):"), rstar_row(2, "c")])


def test_near_duplicates_name_the_row_that_is_kept(tmp_path: Path) -> None:
    words = random.Random(0).choices(string.ascii_lowercase, k=300)
    nearly = [*words[:-2], "lambda", "mu"]
    rows = [rstar_row(1, " ".join(words)), rstar_row(2, "something else"), rstar_row(3, " ".join(nearly))]
    chosen = of_rows(tmp_path, rows, near_duplicates=0.8)
    assert chosen.dropped == [{"row": 3, "id": "seed_3", "reason": "near_duplicate", "like": 1}]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.sampled_from(["a", "a ", "b", "c  d", "c d", "", " "]), min_size=1, max_size=12))
def test_rows_are_neither_lost_nor_repeated(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    rows = [rstar_row(number, text) for number, text in enumerate(texts)]
    folder = tmp_path_factory.mktemp("property")
    wanted = list(dict.fromkeys(normalise(text) for text in texts if text.strip()))
    if not wanted:
        with pytest.raises(UserError, match="is left"):
            of_rows(folder, rows)
        return
    chosen = of_rows(folder, rows)
    assert [normalise(problem.statement) for problem in chosen.problems] == wanted
    assert len(chosen.problems) + len(chosen.dropped) == len(rows)


@needs(RSTAR)
def test_real_training_problems_are_758_after_deduplication(tmp_path: Path) -> None:
    chosen = choose(config_of(tmp_path / "run", RSTAR))
    assert chosen.manifest.counts["rows"] == 1308
    assert chosen.manifest.dropped == {"duplicate": 550}
    assert len({problem.id for problem in chosen.problems}) == len(chosen.problems) == 758
    assert {problem.form for problem in chosen.problems} == {"stdin", "function"}
