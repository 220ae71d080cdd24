"""Tests the token ids of prompts in the chat formats of the supported models, and as plain text.

The tokenizer has one id per byte, so that the expected ids follow from the text; the templates are short versions of
those of Qwen3 and Llama 3.1.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from megatron_ssd.config.generation import PromptConfig
from megatron_ssd.prompts.prompt import build_prompts, prompts_open_thinking
from megatron_ssd.prompts.tokenizer import ChatTokenizer
from megatron_ssd.schema import Problem

QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
QWEN_THINKING = QWEN[: QWEN.index("{% if enable")] + "<think>\n{% endif %}"
# The date is in the system message, which always exists.
LLAMA = (
    "{{ bos_token }}{% set first = messages[0].content if messages[0].role == 'system' else '' %}"
    "<|start_header_id|>system<|end_header_id|>\n\nDate: today\n\n{{ first }}<|eot_id|>"
    "{% for m in messages if m.role != 'system' %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
BOS, EOT, START, END_HEADER, IM_START, IM_END = range(256, 262)
SPECIAL = {
    "<|begin_of_text|>": BOS, "<|eot_id|>": EOT, "<|start_header_id|>": START, "<|end_header_id|>": END_HEADER,
    "<|im_start|>": IM_START, "<|im_end|>": IM_END,
}  # fmt: skip
STDIN = Problem(id="s", source="test", statement="Add 1.", form="stdin")
FUNCTION = Problem(id="f", source="test", statement="Add.", form="function", starter_code="def add(a):")


def byte_tokenizer(folder: Path, template: str | None, *, bos: bool, adds_end: bool = False) -> ChatTokenizer:
    """A tokenizer with one id per byte and ``SPECIAL``; with ``bos`` it begins a text with BOS, as Llama's does."""
    vocabulary = {letter: _byte(letter) for letter in pre_tokenizers.ByteLevel.alphabet()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    if bos:
        single = ["<|begin_of_text|>", "$A", *(["<|eot_id|>"] if adds_end else [])]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=list(SPECIAL.items()))
    end = "<|eot_id|>" if bos else "<|im_end|>"
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, bos_token="<|begin_of_text|>" if bos else None
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    return ChatTokenizer(folder)


def _byte(letter: str) -> int:
    """The byte that ByteLevel writes as ``letter``: bytes that are not visible in Latin-1 are letters from U+0100."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return ord(letter) if ord(letter) in kept else [byte for byte in range(256) if byte not in kept][ord(letter) - 256]


def ids_of(*parts: str | int) -> list[int]:
    """Token ids of text, which are its bytes, and of special tokens."""
    return [id_ for part in parts for id_ in ([part] if isinstance(part, int) else part.encode())]


def prompt_of(problem: Problem, tokenizer: ChatTokenizer, **prompt: object) -> tuple[str, list[int]]:
    """(rendered task, token ids of the prompt)."""
    (built,) = build_prompts([problem], PromptConfig(**prompt), tokenizer)  # type: ignore[arg-type]
    return built.messages[-1]["content"], built.token_ids


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("qwen"), QWEN, bos=False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("llama"), LLAMA, bos=True)


@pytest.mark.parametrize("problem", [STDIN, FUNCTION])
def test_format_of_qwen3(qwen: ChatTokenizer, problem: Problem) -> None:
    task, ids = prompt_of(problem, qwen)
    assert ids == ids_of(IM_START, "user\n", task, IM_END, "\n", IM_START, "assistant\n")
    task, ids = prompt_of(problem, qwen, system="Be brief.", enable_thinking=False)
    assert ids == ids_of(
        IM_START, "system\nBe brief.", IM_END, "\n", IM_START, "user\n", task, IM_END, "\n", IM_START, "assistant\n",
        "<think>\n\n</think>\n\n",
    )  # fmt: skip
    assert prompt_of(problem, qwen, enable_thinking=True) == prompt_of(problem, qwen)


@pytest.mark.parametrize("problem", [STDIN, FUNCTION])
def test_format_of_llama_has_one_begin_token(llama: ChatTokenizer, problem: Problem) -> None:
    task, ids = prompt_of(problem, llama, system="Be brief.")
    assert ids == ids_of(
        BOS, START, "system", END_HEADER, "\n\nDate: today\n\nBe brief.", EOT, START, "user", END_HEADER, "\n\n", task,
        EOT, START, "assistant", END_HEADER, "\n\n",
    )  # fmt: skip
    task, ids = prompt_of(problem, llama)
    assert ids[: ids.index(EOT)] == ids_of(BOS, START, "system", END_HEADER, "\n\nDate: today\n\n")
    assert ids.count(BOS) == 1


def test_raw_text_has_only_the_tokenizers_begin_token(qwen: ChatTokenizer, llama: ChatTokenizer) -> None:
    for problem in (STDIN, FUNCTION):
        task, ids = prompt_of(problem, qwen, mode="raw")
        assert ids == ids_of(task)
        task, ids = prompt_of(problem, llama, mode="raw", system="Be brief.")
        assert ids == ids_of(BOS, "Be brief.\n\n", task)


def test_raw_text_does_not_need_a_chat_template_and_has_no_end_token(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path, None, bos=True, adds_end=True)
    task, ids = prompt_of(STDIN, tokenizer, mode="raw")
    assert ids == ids_of(BOS, task)


def test_the_exact_text_of_both_task_forms(qwen: ChatTokenizer) -> None:
    task, _ = prompt_of(FUNCTION, qwen)
    assert task.startswith("Solve the task below in Python 3. Complete the starter code:")
    assert "\n\n### Task\nAdd.\n\n### Starter code\n```python\ndef add(a):\n```\n\n" in task
    assert task.endswith("\n\nPut the finished code in one block that opens with ```python and closes with ```.")
    task, _ = prompt_of(STDIN, qwen)
    assert task.startswith("Solve the task below with a complete Python 3 program. The program reads its input from")
    assert "\n\n### Task\nAdd 1.\n\nPut the finished code" in task


def test_detection_of_prompts_that_open_the_reasoning(qwen: ChatTokenizer, tmp_path: Path) -> None:
    thinking = byte_tokenizer(tmp_path, QWEN_THINKING, bos=False)
    assert prompts_open_thinking([STDIN, FUNCTION], PromptConfig(), thinking)
    assert not prompts_open_thinking([STDIN], PromptConfig(mode="raw"), thinking)
    assert not prompts_open_thinking([STDIN], PromptConfig(enable_thinking=False), qwen)
    assert not prompts_open_thinking([], PromptConfig(), thinking)
