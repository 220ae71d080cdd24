"""Evaluation problems hidden among training problems are found, and unrelated ones are not accused."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.problems.contamination import ContaminationIndex, EvaluationProblem, words
from tests.unit.problems.problem_files import choose, config_of, jsonl, parquet, rstar_row

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
HUMANEVAL = DATA / "humaneval" / "HumanEval.jsonl.gz"
needs_data = pytest.mark.skipif(not HUMANEVAL.is_file(), reason="needs ../shared/data beside the project")
PROMPT = '''def close_pair(numbers, threshold):
    """Say whether any two of the given numbers are closer to each other than the threshold that is given.
    >>> close_pair([1.0, 2.0], 0.5)
    False
    """'''


def index(*texts: str, **how: Any) -> ContaminationIndex:
    problems = [EvaluationProblem(set_name="set", id=str(number), text=text) for number, text in enumerate(texts)]
    return ContaminationIndex(problems, **{"ngram": 8, "overlap": 0.5, **how})


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


def test_equal_words_are_exact_whatever_their_number() -> None:
    (hit,) = index("Sort it.").hits("train", "  sort   IT ")
    assert hit.exact
    assert hit.overlap == 1.0


def test_a_short_text_inside_a_long_one_is_found() -> None:
    text = "Please do the following now. Reverse the words of a sentence. Thank you very much for it."
    (hit,) = index("Reverse the words of a sentence.").hits("train", text)
    assert not hit.exact


def test_shared_phrases_are_no_hit() -> None:
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


@needs_data
@pytest.mark.parametrize("change", ["nothing", "white space", "names"])
def test_humaneval_planted_in_the_training_set_is_caught_whole(tmp_path: Path, change: str) -> None:
    with gzip.open(HUMANEVAL) as lines:
        problems = [json.loads(line) for line in lines]
    planted = [rstar_row(number, _changed(problem, change)) for number, problem in enumerate(problems)]
    innocent = [rstar_row(1000 + number, f"Print {number} stars, a row for each divisor.") for number in range(50)]
    rows = planted + innocent
    random.Random(0).shuffle(rows)
    sets = [{"name": "humaneval", "path": str(HUMANEVAL), "columns": ["prompt"]}]
    path = parquet(tmp_path / "rows", rows)
    with pytest.raises(UserError, match=r"164 training problem\(s\) in evaluation sets"):
        choose(config_of(tmp_path / "refused", path, contamination={"sets": sets}))
    chosen = choose(config_of(tmp_path / "dropped", path, contamination={"sets": sets, "on_hit": "drop"}))
    assert chosen.manifest.dropped == {"contaminated": 164}
    assert len(chosen.problems) == 50


def _changed(problem: dict[str, Any], change: str) -> str:
    text: str = problem["prompt"]
    if change == "white space":
        return re.sub(r"\s", lambda found: found.group() * 2, text)
    if change == "names":
        signature = re.search(rf"def {problem['entry_point']}\(([^)]*)\)", text)
        assert signature is not None
        names = [problem["entry_point"], *(part.split(":")[0].strip() for part in signature[1].split(","))]
        for number, name in enumerate(filter(None, names)):
            text = re.sub(rf"\b{re.escape(name)}\b", f"renamed_{number}", text)
    return text


def test_the_gate_refuses_by_name_and_goes_on_when_told(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows", [rstar_row(1, PROMPT), rstar_row(2, "Print the sum of two numbers.")])
    sets = [{"name": "mine", "path": str(jsonl(tmp_path / "eval.jsonl", [{"text": PROMPT}])), "columns": ["text"]}]
    with pytest.raises(UserError, match="seed_1, which holds 100% of mine's row 1") as caught:
        choose(config_of(tmp_path / "run", path, contamination={"sets": sets}))
    assert "\n" not in str(caught.value)
    allowed = choose(config_of(tmp_path / "max_hits", path, contamination={"sets": sets, "max_hits": 1}))
    assert (len(allowed.problems), allowed.manifest.counts["contaminated_and_kept"]) == (2, 1)
    kept = choose(config_of(tmp_path / "keep", path, contamination={"sets": sets, "on_hit": "keep"}))
    assert [(hit["problem_id"], hit["evaluation_id"], hit["kept"]) for hit in kept.hits] == [("seed_1", "row 1", True)]


def test_what_the_limit_leaves_out_is_not_held_against_a_run(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows", [rstar_row(1, "Print the sum of two numbers."), rstar_row(2, PROMPT)])
    sets = [{"name": "mine", "path": str(jsonl(tmp_path / "eval.jsonl", [{"text": PROMPT}])), "columns": ["text"]}]
    chosen = choose(config_of(tmp_path / "run", path, contamination={"sets": sets}, limit=1))
    assert chosen.manifest.counts["contaminated_and_kept"] == 0


@needs_data
def test_the_runs_own_benchmark_is_always_a_set(tmp_path: Path) -> None:
    benchmark = {"name": "livecodebench", "path": str(DATA / "lcb_schema" / "codeforces_408.jsonl")}
    rows = DATA / "rstar_coder_seed_sft"
    with pytest.raises(UserError, match="of livecodebench's cf_"):
        choose(config_of(tmp_path / "run", rows, benchmark=benchmark))
    chosen = choose(config_of(tmp_path / "clean", rows, benchmark=benchmark, contamination={"on_hit": "drop"}))
    assert chosen.manifest.dropped == {"duplicate": 550, "contaminated": 408}
    assert len(chosen.problems) == 350
