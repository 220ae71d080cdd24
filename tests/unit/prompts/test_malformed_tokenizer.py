"""Tests the error messages for corrupt tokenizers and for chat templates that drop a message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_ssd.errors import UserError
from megatron_ssd.prompts.tokenizer import ChatTokenizer, fast_tokenizer
from tests.helpers.errors import one_line_error
from tests.helpers.tokenizer_folders import with_template

USER = {"role": "user", "content": "hello"}
SYSTEM = {"role": "system", "content": "be brief"}
NOT_JSON = {
    "empty": b"", "cut": b'{"version": "1.', "python literal": b"{'version': 5}", "UTF-16": "{}".encode("utf-16"),
    "not UTF-8": b'{"a": "\xff"}', "NUL bytes": b"\0" * 64, "deep nesting": b"[" * 100_000, "list": b"[]",
    "null": b"null", "number": b"7", "text": b'"x"', "truth value": b"true", "a huge number": b"1" * 5000,
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_JSON)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_corrupt_tokenizer_is_named(tiny_tokenizer: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_tokenizer, folder)
    (folder / name).write_bytes(NOT_JSON[kind])
    with one_line_error(r"model folder .*has no tokenizer that loads"):
        ChatTokenizer(folder)


FIELDS = {
    "a model that is a number": ("tokenizer.json", {"model": 7}),
    "a model of an unknown type": ("tokenizer.json", {"model": {"type": "nothing"}}),
    "a pre-tokenizer of an unknown type": ("tokenizer.json", {"pre_tokenizer": {"type": "nothing"}}),
    "added tokens null": ("tokenizer.json", {"added_tokens": None}),
    "added tokens of text": ("tokenizer.json", {"added_tokens": ["a"]}),
    "a merge of a token that is not there": ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0},
                                                                          "merges": [["a", "b"]]}}),
    "an id beyond 64 bits": ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 2**70}, "merges": []}}),
    "a negative id": ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}),
    "an empty map of classes": ("tokenizer_config.json", {"auto_map": [7]}),
    "a class that is a number": ("tokenizer_config.json", {"tokenizer_class": 7}),
    "an id that is not a number": ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}),
    "an end token that is a list": ("tokenizer_config.json", {"eos_token": ["a"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FIELDS)
def test_a_tokenizer_with_an_invalid_field_is_named(tiny_tokenizer: Path, tmp_path: Path, kind: str) -> None:
    name, changes = FIELDS[kind]
    shutil.copytree(tiny_tokenizer, tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with one_line_error(r"model folder .*has no tokenizer that loads \(.+\)"):
        ChatTokenizer(tmp_path / "model")


def test_a_tokenizer_without_tokens_is_named(tiny_tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_tokenizer, tmp_path / "model")
    changes = {"tokenizer.json": {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []},
               "tokenizer_config.json": {}}  # fmt: skip
    for name, change in changes.items():
        path = tmp_path / "model" / name
        kept = json.loads(path.read_text()) if change else {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.write_text(json.dumps({**kept, **change}))
    (tmp_path / "model" / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"tokenizer of .*has no tokens; copy it from the model again"):
        ChatTokenizer(tmp_path / "model")


REFUSING = {
    "unclosed": "{{",
    "no such statement": "{% nothing %}",
    "unfinished loop": "{% for message in messages %}",
    "unknown name": "{{ nothing.content }}",
    "no such message": "{{ messages[9].content }}",
    "no such filter": "{{ messages | nothing }}",
    "wrong types": "{{ messages[0].content + 1 }}",
    "division by zero": "{{ 1 / 0 }}",
    "not in the list": "{{ [].index(1) }}",
    "no such key": "{{ {}.pop('x') }}",
    "not a number": "{{ '%d' % 'x' }}",
    "a number too large": "{{ 10.0 ** 400 }}",
    "a range too large": "{{ range(10 ** 9) | list }}",
    "calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "text too large": "{{ 'x' * (2 ** 62) }}",
    "a forbidden attribute": "{{ ''.__class__.__mro__ }}",
    "refuses": "{{ raise_exception('not\nthese') }}",
    "not text": 7,
    "named templates without a default": [{"name": "tools", "template": "x"}],
}


@pytest.mark.parametrize("kind", REFUSING)
def test_a_broken_chat_template_is_named(tiny_tokenizer: Path, tmp_path: Path, kind: str) -> None:
    tokenizer = ChatTokenizer(with_template(tiny_tokenizer, tmp_path / "model", REFUSING[kind]))
    with one_line_error(r"chat template of .*refuses messages of \['user'\] \(.+\)"):
        tokenizer.prompt_ids([USER])


IGNORING = {
    "nothing": ("{{ '' }}", "renders nothing for any content of the user message; use the chat template that belongs"),
    "a comment": ("{# messages #}", "renders nothing for any content of the user message"),
    "a condition that never holds": ("{% if messages|length > 9 %}{{ messages[0].content }}{% endif %}", "nothing"),
    "white space": ("{{ '   ' }}", "renders the same for any content of the user message"),
    "fixed text": ("<|im_start|>user<|im_end|>", "renders the same for any content of the user message"),
    "roles alone": ("{% for m in messages %}{{ m.role }}{% endfor %}", "renders the same for any"),
    "another field": ("{% for m in messages %}{{ m.text }}{% endfor %}x", "renders the same for any"),
    "an attribute of the list": ("{{ messages.content }}x", "renders the same for any content of the user message"),
    "the opening of the answer": ("{% if add_generation_prompt %}assistant{% endif %}", "renders the same for any"),
    "messages of another role": (
        "{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}", "renders nothing for any",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", IGNORING)
def test_a_chat_template_that_drops_the_question_is_refused(tiny_tokenizer: Path, tmp_path: Path, kind: str) -> None:
    template, message = IGNORING[kind]
    tokenizer = ChatTokenizer(with_template(tiny_tokenizer, tmp_path / "model", template))
    for _ in range(2):  # also on the second call
        with one_line_error(rf"chat template of .*{message}"):
            tokenizer.prompt_ids([USER])


def test_a_chat_template_that_drops_the_system_message_is_refused_only_if_there_is_one(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    tokenizer = ChatTokenizer(with_template(tiny_tokenizer, tmp_path / "model", template))
    with pytest.raises(
        UserError, match=r"for any content of the system message; leave prompt\.system out, or use a model"
    ):
        tokenizer.prompt_ids([SYSTEM, USER])
    assert tokenizer.text(tokenizer.prompt_ids([USER])) == "hello"
    with pytest.raises(UserError, match="for any content of the system message"):
        tokenizer.prompt_ids([SYSTEM, USER])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content | trim }}",
        "{{ messages[0]['content'] | upper }}",
        "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
        "{% for m in messages %}{{ m }}{% endfor %}",
        [{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "tools", "template": "x"}],
    ],
)
def test_a_chat_template_that_reformats_the_question_is_accepted(
    tiny_tokenizer: Path, tmp_path: Path, template: str
) -> None:
    tokenizer = ChatTokenizer(with_template(tiny_tokenizer, tmp_path / "model", template))
    for content in ("hello", "", "{{ x }}", "<|im_end|>", "a</think>b", "\N{SNOWMAN}" * 3):
        again = tokenizer.prompt_ids([{"role": "user", "content": content}])
        assert again == tokenizer.prompt_ids([{"role": "user", "content": content}])
    assert tokenizer.prompt_ids([USER]) != tokenizer.prompt_ids([{**USER, "content": "hello there"}])


def test_an_empty_question_is_not_an_error_of_the_template(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(with_template(tiny_tokenizer, tmp_path / "model", "{{ messages[0].content }}"))
    assert tokenizer.prompt_ids([{"role": "user", "content": ""}]) == []


def test_the_template_is_checked_once_for_the_same_roles(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(with_template(tiny_tokenizer, tmp_path / "model", "{{ messages[-1].content }}"))
    calls: list[bool] = []
    apply = tokenizer._apply

    def counting(*arguments: object, tokenize: bool) -> object:
        calls.append(tokenize)
        return apply(*arguments, tokenize=tokenize)  # type: ignore[arg-type]

    tokenizer._apply = counting  # type: ignore[method-assign]
    for _ in range(3):
        tokenizer.prompt_ids([USER])
    assert calls.count(True) == 3
    assert calls.count(False) == 2


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; use the folder of the model"):
        fast_tokenizer(tmp_path / "none")
