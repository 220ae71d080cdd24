"""The one kind of error that a user causes and a user can mend, and the one kind of stop that a scheduler causes."""

from __future__ import annotations

import functools
from typing import Any


class UserError(ValueError):
    """Something that the user named cannot be used.

    The message is one line of three parts: the value as it was given, the rule that it breaks, and what to do.
    Entry points print that line alone and exit with status 2.

    Args:
        what: the key or path and its value, for example ``parallel.tensor_model_parallel_size = 3``.
        rule: what must hold, for example ``must divide num_attention_heads (32)``.
        fix: what to do, for example ``use 1, 2, 4, 8, 16 or 32``.
    """

    def __init__(self, what: str, *, rule: str, fix: str) -> None:
        self.what, self.rule, self.fix = what, rule, fix
        super().__init__(" ".join(f"{what}: {rule}; {fix}".split()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process borders (ranks, workers); keyword-only arguments need to be said again there."""
        return functools.partial(type(self), rule=self.rule, fix=self.fix), (self.what,)


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class MissingModelError(UserError):
    """A stage needs ``model.path`` and it is null."""


class Requeue(KeyboardInterrupt):
    """A scheduler asked for the machine: the state is saved, and the same command should be started again."""


def shown(value: Any) -> str:
    """A value in a message as YAML and the command line have it: null, true and false, the rest as Python shows it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def require(condition: bool, what: str, *, rule: str, fix: str) -> None:
    """Raise ``ConfigError`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(what, rule=rule, fix=fix)
