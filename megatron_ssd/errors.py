"""User-facing errors."""

from __future__ import annotations

import functools
from typing import Any


class UserError(ValueError):
    """An error that the user can fix.

    The message is one line: the value as the user gave it, the rule that it breaks, and the fix. Entry points print
    only that line and exit with status 2.

    Args:
        what: the key or path and its value, for example ``parallel.tensor_model_parallel_size = 3``.
        rule: what must hold, for example ``must divide num_attention_heads (32)``.
        fix: what to do, for example ``use 1, 2, 4, 8, 16 or 32``.
    """

    def __init__(self, what: str, *, rule: str, fix: str) -> None:
        self.what, self.rule, self.fix = what, rule, fix
        super().__init__(" ".join(f"{what}: {rule}; {fix}".split()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle support: errors are sent between processes, and pickle does not pass keyword-only arguments."""
        return functools.partial(type(self), rule=self.rule, fix=self.fix), (self.what,)


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class NotTextError(ConfigError):
    """The value of a key that takes text is something else, such as a list or a number."""


class MissingModelError(UserError):
    """A stage needs ``model.path`` and it is null."""


class Requeue(KeyboardInterrupt):
    """The scheduler asked the run to stop: the state is saved, and the same command resumes it."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: Any) -> str:
    """A value as YAML and the command line write it: null, true and false; anything else as its ``repr``."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def require(condition: bool, what: str, *, rule: str, fix: str) -> None:
    """Raise ``ConfigError`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(what, rule=rule, fix=fix)
