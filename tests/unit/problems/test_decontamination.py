"""Tests that copies of evaluation problems are found among training problems, and that unrelated ones are not."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ssd.artifacts.jsonl import read_jsonl
from megatron_ssd.errors import UserError
from megatron_ssd.problems.decontamination import ContaminationIndex, EvaluationProblem, words
from tests.helpers.errors import one_line_error
from tests.helpers.lcb_rows import lcb_section
from tests.helpers.paths import CODEFORCES, DATA, HUMANEVAL, MBPP, RSTAR, needs
from tests.helpers.problem_files import choose, config_of, evaluation_set, parquet, rstar_row

PROMPT = '''def close_pair(numbers, threshold):
    """Say whether any two of the given numbers are closer to each other than the threshold that is given.
    >>> close_pair([1.0, 2.0], 0.5)
    False
    """'''


STORY = """Long ago, in a village by the sea, the fishermen counted their boats every evening and argued about the sum.
To decide it they asked the traveller who had come with the caravan, and she told them what to do as follows."""


def index(*texts: str, **settings: Any) -> ContaminationIndex:
    problems = [EvaluationProblem(set_name="set", id=str(number), text=text) for number, text in enumerate(texts)]
    return ContaminationIndex(problems, **{"ngram": 8, "overlap": 0.5, **settings})


@pytest.mark.parametrize(
    "planted",
    [
        PROMPT,
        re.sub(r"\s+", "\n\n  ", PROMPT),
        PROMPT.upper(),
        PROMPT.replace("close_pair", "f").replace("numbers", "xs").replace("threshold", "t"),
        f"A story first, as on some sites.\n{PROMPT}\nAnd an explanation after it, for good measure.",
    ],
    ids=["as it is", "white space", "case", "names", "embedded"],
)
def test_a_planted_problem_is_found(planted: str) -> None:
    (hit,) = index(PROMPT, "Add two numbers and print the sum of both of them.").hits("train", planted)
    assert (hit.problem_id, hit.evaluation_id) == ("train", "0")
    assert hit.overlap > 0.5


def test_texts_with_equal_words_are_exact_copies() -> None:
    (hit,) = index("Sort it.").hits("train", "  sort   IT ")
    assert hit.exact
    assert hit.overlap == 1.0


def test_a_short_text_inside_a_long_one_is_found() -> None:
    text = "Please do the following now. Reverse the words of a sentence. Thank you very much for it."
    (hit,) = index("Reverse the words of a sentence.").hits("train", text)
    assert not hit.exact


def test_a_copy_without_the_examples_is_found() -> None:
    examples = " ".join(
        f"Example {n}: of {n} and {n + 1} the sum is {2 * n + 1}, since both are added." for n in range(9)
    )
    (hit,) = index(f"{PROMPT}\n{examples}").hits("train", PROMPT)
    assert hit.overlap == 1.0
    assert not hit.exact


def test_a_copy_without_its_signature_is_found() -> None:
    docstring = PROMPT.split('"""')[1]
    assert "close_pair" in docstring
    (hit,) = index(PROMPT).hits("train", docstring)
    assert hit.overlap == 1.0


def test_a_short_phrase_of_an_evaluation_problem_is_not_a_hit() -> None:
    assert index(PROMPT).hits("train", "Say whether any two of the given numbers are closer to each other.") == []


@settings(max_examples=50)
@given(st.data())
def test_every_shared_ngram_is_found(data: st.DataObject) -> None:
    word = st.sampled_from("abcdefgh")
    evaluation = data.draw(st.lists(st.lists(word, min_size=1, max_size=12), min_size=1, max_size=5))
    training = data.draw(st.lists(word, max_size=40))
    found = {hit.evaluation_id: hit.overlap for hit in
             index(*map(" ".join, evaluation), ngram=3, overlap=0.01).hits("train", " ".join(training))}  # fmt: skip
    for number, text in enumerate(evaluation):
        length = min(3, len(text))
        ours, theirs = ({tuple(one[i : i + length]) for i in range(len(one) - length + 1)} for one in (training, text))
        assert (str(number) in found) == (bool(ours & theirs) or training == text)


def test_shared_phrases_are_not_a_hit() -> None:
    ours = "The first line contains a single integer n. Find the largest sum of a path in the tree."
    theirs = "The first line contains a single integer n. Count the ways to tile a board with dominoes."
    assert index(theirs).hits("train", ours) == []


def test_an_exact_only_problem_needs_all_its_words() -> None:
    problem = EvaluationProblem(set_name="s", id="1", text=PROMPT, exact_only=True)
    found = ContaminationIndex([problem], ngram=8, overlap=0.5)
    assert found.hits("train", f"{PROMPT} more") == []
    assert found.hits("train", PROMPT)[0].exact


def test_names_of_a_signature_do_not_count() -> None:
    assert words("def add(a: int, b=2): return a + b") == words("def plus(x: int, y=2): return x + y")


@needs(HUMANEVAL)
@pytest.mark.parametrize("change", ["nothing", "white space", "names", "names and white space", "names in a story"])
def test_every_problem_of_humaneval_that_is_planted_is_found(tmp_path: Path, change: str) -> None:
    with gzip.open(HUMANEVAL) as lines:
        problems = [json.loads(line) for line in lines]
    planted = [rstar_row(number, _changed(problem, change)) for number, problem in enumerate(problems)]
    unrelated = [rstar_row(1000 + number, f"Print {number} stars, a row for each divisor.") for number in range(50)]
    rows = planted + unrelated
    random.Random(0).shuffle(rows)
    sets = {"humaneval": {"path": str(HUMANEVAL), "columns": ["prompt"], "id": "task_id"}}
    path = parquet(tmp_path / "rows", rows)
    with pytest.raises(UserError, match=r"164 training problem\(s\) in evaluation sets"):
        choose(config_of(tmp_path / "refused", path, contamination={"sets": sets}))
    chosen = choose(config_of(tmp_path / "dropped", path, contamination={"sets": sets, "on_hit": "drop"}))
    assert chosen.manifest.dropped == {"contaminated": 164}
    assert len(chosen.problems) == 50


def _changed(problem: dict[str, Any], change: str) -> str:
    text: str = problem["prompt"]
    if "names" in change:
        signature = re.search(rf"def {problem['entry_point']}\(([^)]*)\)", text)
        assert signature is not None
        names = [problem["entry_point"], *(part.split(":")[0].strip() for part in signature[1].split(","))]
        for number, name in enumerate(filter(None, names)):
            text = re.sub(rf"\b{re.escape(name)}\b", f"renamed_{number}", text)
    if "white space" in change:
        text = re.sub(r"\s", lambda found: found.group() * 2, text)
    if "story" in change:
        text = f"{STORY}\n{text}\n{STORY}"
    return text


@needs(DATA)
@pytest.mark.parametrize("change", ["nothing", "white space", "story"])
@pytest.mark.parametrize(
    ("name", "file", "column"),
    [("mbpp", "mbpp/mbpp.jsonl", "text"), ("aime", "aime/qwen25math_aime24.jsonl", "problem"),
     ("aime", "aime/qwq_aime25.jsonl", "prompt")],
)  # fmt: skip
def test_every_problem_of_other_sets_that_is_planted_is_found(name: str, file: str, column: str, change: str) -> None:
    rows = read_jsonl(DATA / file)
    found = index(*(row[column] for row in rows))
    missed = [row[column] for row in rows if not found.hits("train", _changed({"prompt": row[column]}, change))]
    assert missed == []


@needs(DATA)
def test_hits_among_real_training_problems_are_real_copies(tmp_path: Path) -> None:
    sets = {
        "humaneval": {"path": str(HUMANEVAL), "columns": ["prompt"], "id": "task_id"},
        "mbpp": {"path": str(MBPP), "columns": ["text"], "id": "task_id"},
        "aime": {"path": str(DATA / "aime" / "qwq_aime24.jsonl"), "columns": ["prompt"]},
        "aime25": {"path": str(DATA / "aime" / "qwq_aime25.jsonl"), "columns": ["prompt"]},
        "livecodebench": {"path": str(DATA / "lcb" / "qwq_livecodebench_v5_prompts.jsonl"), "columns": ["prompt"],
                          "id": "question_id"},
    }  # fmt: skip
    config = config_of(tmp_path / "run", RSTAR, contamination={"sets": sets, "on_hit": "drop"})
    chosen = choose(config)
    # Checked by hand: four are copies of the benchmark's problem without its examples, and seed_1296 is 3517 with one
    # more condition.
    assert {(hit["problem_id"], hit["set_name"], hit["evaluation_id"]) for hit in chosen.hits} == {
        ("seed_1301", "livecodebench", "3525"), ("seed_1303", "livecodebench", "3535"),
        ("seed_1306", "livecodebench", "3543"), ("seed_1296", "livecodebench", "3517"),
        ("seed_1299", "livecodebench", "3517"),
    }  # fmt: skip
    assert len(chosen.problems) == 753


def test_contamination_is_refused_by_name_and_kept_if_configured(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows", [rstar_row(1, PROMPT), rstar_row(2, "Print the sum of two numbers.")])
    sets = evaluation_set(tmp_path / "eval.jsonl", PROMPT)
    with one_line_error("seed_1, which shares 100% with mine's row 1"):
        choose(config_of(tmp_path / "run", path, contamination={"sets": sets}))
    allowed = choose(config_of(tmp_path / "max_hits", path, contamination={"sets": sets, "max_hits": 1}))
    assert (len(allowed.problems), allowed.manifest.counts["contaminated_and_kept"]) == (2, 1)
    kept = choose(config_of(tmp_path / "keep", path, contamination={"sets": sets, "on_hit": "keep"}))
    assert [(hit["problem_id"], hit["evaluation_id"], hit["kept"]) for hit in kept.hits] == [("seed_1", "row 1", True)]


def test_dropped_problems_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = parquet(tmp_path / "rows", [rstar_row(1, PROMPT), rstar_row(2, "Print the sum of two numbers.")])
    sets = evaluation_set(tmp_path / "eval.jsonl", PROMPT)
    with caplog.at_level("INFO"):
        choose(config_of(tmp_path / "run", path, contamination={"sets": sets, "on_hit": "drop"}))
    assert "dropped 1 that are in evaluation sets (contamination.on_hit=drop" in caplog.text
    assert "; dropped 1 for contaminated" in caplog.text


def test_each_fix_in_the_error_works_in_the_same_folder(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows", [rstar_row(1, PROMPT), rstar_row(2, "Print the sum of two numbers.")])
    right = evaluation_set(tmp_path / "eval.jsonl", PROMPT)
    wrong = {"mine": {**right["mine"], "columns": ["prompt"]}}
    run_dir = tmp_path / "run"
    with pytest.raises(UserError, match=r"contamination\.sets\.mine\.columns"):
        choose(config_of(run_dir, path, contamination={"sets": wrong}))
    with pytest.raises(UserError, match=r"contamination\.on_hit=drop.*contamination\.on_hit=keep"):
        choose(config_of(run_dir, path, contamination={"sets": right}))
    assert len(read_jsonl(run_dir / "problems.partial" / "contamination.jsonl")) == 1
    chosen = choose(config_of(run_dir, path, contamination={"sets": right, "on_hit": "drop"}))
    assert [problem.id for problem in chosen.problems] == ["seed_2"]
    assert not (run_dir / "problems.partial").exists()


def test_contaminated_problems_beyond_the_limit_do_not_count(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows", [rstar_row(1, "Print the sum of two numbers."), rstar_row(2, PROMPT)])
    sets = evaluation_set(tmp_path / "eval.jsonl", PROMPT)
    chosen = choose(config_of(tmp_path / "run", path, contamination={"sets": sets}, limit=1))
    assert chosen.manifest.counts["contaminated_and_kept"] == 0


@needs(RSTAR, CODEFORCES)
def test_the_benchmark_of_the_run_is_always_an_evaluation_set(tmp_path: Path) -> None:
    benchmark = lcb_section(CODEFORCES)
    with pytest.raises(UserError, match="with livecodebench's cf_"):
        choose(config_of(tmp_path / "run", RSTAR, benchmark=benchmark))
    chosen = choose(config_of(tmp_path / "clean", RSTAR, benchmark=benchmark, contamination={"on_hit": "drop"}))
    assert chosen.manifest.dropped == {"duplicate": 550, "contaminated": 408}
    assert len(chosen.problems) == 350
