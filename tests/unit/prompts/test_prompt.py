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
