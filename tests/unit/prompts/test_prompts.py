"""Tests how problems become messages and token ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ssd.config.generation import PromptConfig
from megatron_ssd.errors import ConfigError, UserError
from megatron_ssd.prompts import prompt
from megatron_ssd.prompts.prompt import build_prompts, render_messages, template_hash
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem
from tests.helpers.errors import one_line_error
from tests.helpers.tokenizer_folders import with_template

STDIN = Problem(id="p", source="test", statement="Add <a> & {{ b }}.", form="stdin")
FUNCTION = Problem(
    id="f", source="test", statement="Add.", form="function", starter_code="class Solution:\n    def add(self, a, b):"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> ChatTokenizer:
    return ChatTokenizer(tiny_tokenizer)


def test_the_statement_is_used_unchanged() -> None:
    (message,) = render_messages(STDIN, PromptConfig())
    assert message["role"] == "user"
    assert STDIN.statement in message["content"]
    assert "standard input" in message["content"]
    assert "Starter code" not in message["content"]


def test_function_form_shows_the_starter_code_in_a_block() -> None:
    (message,) = render_messages(FUNCTION, PromptConfig())
    assert f"```python\n{FUNCTION.starter_code}\n```" in message["content"]
    assert "standard input" not in message["content"]


@pytest.mark.parametrize("problem", [STDIN, FUNCTION])
def test_templates_leave_no_extra_white_space(problem: Problem) -> None:
    for template in ("code", "minicode"):
        (message,) = render_messages(problem, PromptConfig(template=template))
        assert message["content"] == message["content"].strip()
        assert "\n\n\n" not in message["content"]


def test_the_system_message_comes_first() -> None:
    messages = render_messages(STDIN, PromptConfig(system="Be brief."))
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"] == "Be brief."


def test_an_unknown_template_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"prompt\.template = cod: .*use one of code, completion, minicode"):
        render_messages(STDIN, PromptConfig(template="cod"))


def test_a_misspelt_field_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.jinja").write_text("{{ problem.statment }}")
    monkeypatch.setattr(prompt, "_FOLDER", tmp_path)
    with one_line_error("statment"):
        render_messages(STDIN, PromptConfig(template="broken"))


def test_the_template_hash_depends_on_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jinja").write_text("one")
    (tmp_path / "b.jinja").write_text("one")
    (tmp_path / "c.jinja").write_text("two")
    monkeypatch.setattr(prompt, "_FOLDER", tmp_path)
    a, b, c = (template_hash(PromptConfig(template=name)) for name in "abc")
    assert a == b != c


def test_prompt_ids_equal_the_rendered_chat_template(tokenizer: ChatTokenizer) -> None:
    from transformers import AutoTokenizer

    (prompt,) = build_prompts([STDIN], PromptConfig(), tokenizer)
    plain = AutoTokenizer.from_pretrained(tokenizer._folder)
    text = plain.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")
    assert prompt.token_ids == plain.encode(text, add_special_tokens=False)
    assert prompt.problem_id == "p"


def test_text_leaves_out_special_tokens_and_keeps_indentation(tokenizer: ChatTokenizer) -> None:
    from transformers import AutoTokenizer

    code = "for x in xs:\n    if x:\n        return  x\n"
    ids = AutoTokenizer.from_pretrained(tokenizer._folder).encode(code + "<|im_end|>", add_special_tokens=False)
    assert tokenizer.text(ids) == code


def test_enable_thinking_is_passed_only_if_set(tiny_tokenizer: Path, tmp_path: Path) -> None:
    template = "{{ 'unset' if enable_thinking is not defined else enable_thinking }}{{ messages[0].content }}"
    tokenizer = ChatTokenizer(with_template(tiny_tokenizer, tmp_path / "thinking", template))
    shown = {
        value: tokenizer.text(tokenizer.prompt_ids([{"role": "user", "content": "!"}], enable_thinking=value))
        for value in (None, True, False)
    }
    assert shown == {None: "unset!", True: "True!", False: "False!"}


def test_a_chat_template_that_raises_is_one_line(tiny_tokenizer: Path, tmp_path: Path) -> None:
    template = "{{ raise_exception('no system\nmessages') }}"
    tokenizer = ChatTokenizer(with_template(tiny_tokenizer, tmp_path / "refuses", template))
    with one_line_error(r"refuses messages of \['system'\] \(no system messages\)"):
        tokenizer.prompt_ids([{"role": "system", "content": ""}])


def test_a_tokenizer_without_chat_template_is_refused_only_in_chat_mode(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(with_template(tiny_tokenizer, tmp_path / "bare", None))
    with pytest.raises(UserError, match=r"has no chat template.*set prompt\.mode=raw"):
        next(build_prompts([STDIN], PromptConfig(), tokenizer))
    (prompt,) = build_prompts([STDIN], PromptConfig(mode="raw"), tokenizer)
    assert tokenizer.text(prompt.token_ids) == prompt.messages[0]["content"]


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with one_line_error("has no tokenizer that loads"):
        ChatTokenizer(tmp_path)


def test_ids_outside_the_models_vocabulary_are_refused(tokenizer: ChatTokenizer) -> None:
    assert tokenizer.size == 512
    tokenizer.check_fits(512)
    with pytest.raises(UserError, match=r"ids up to 511: the model's vocabulary has 511 entries"):
        tokenizer.check_fits(511)


def test_an_end_token_that_does_not_end_responses_is_refused(tokenizer: ChatTokenizer) -> None:
    end = tokenizer._tokenizer.eos_token_id
    tokenizer.check_ends((3, end))
    with one_line_error(rf"\({end}\): responses end at the ids \[3\] only, .*; add the id to eos_token_id"):
        tokenizer.check_ends((3,))


COMPLETED = Problem(
    id="c", source="humaneval_plus", statement="def f(x):\n", form="evalplus", starter_code="def f(x):\n"
)
ASSERTED = Problem(
    id="a", source="mbpp", statement="Double x.", form="checks", metadata={"assertions": "assert double(1) == 2"}
)


def test_a_chat_prompt_of_a_tested_function_names_it() -> None:
    (completed,), (asserted,) = (render_messages(problem, PromptConfig()) for problem in (COMPLETED, ASSERTED))
    assert "```python\ndef f(x):\n```" in completed["content"]
    assert "```python\nassert double(1) == 2\n```" in asserted["content"]
    assert "Double x." in asserted["content"]
    assert all("standard input" not in message["content"] for message in (completed, asserted))


def test_the_raw_prompt_of_a_tested_function_is_code_to_continue() -> None:
    raw = PromptConfig(mode="raw")
    assert render_messages(COMPLETED, raw)[0]["content"] == COMPLETED.starter_code
    assert render_messages(ASSERTED, raw)[0]["content"] == '"""\nDouble x.\nassert double(1) == 2\n"""\n'
    assert render_messages(STDIN, raw) == render_messages(STDIN, PromptConfig())
