"""LiveCodeBench's two encodings of test cases: JSON text, or base64 of zlib of a pickle of that text.

The pickle comes from the network and is read by an unpickler that can build nothing but plain values.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import zlib
from typing import Any, NoReturn

from megatron_ssd.errors import UserError
from megatron_ssd.schema import ProblemForm, TestCase

# What JSON, base64, zlib and an unpickler raise over bytes that are not theirs.
_DECODING_ERRORS = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError, MemoryError, RecursionError,
    zlib.error, struct.error, pickle.UnpicklingError,
)  # fmt: skip
_TEST_TYPE = {"stdin": "stdin", "function": "functional"}


class _TextUnpickler(pickle.Unpickler):
    """Refuses every global, so that loading a pickle runs no code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and test cases are text alone")


def decode_tests(text: str, *, where: str, form: ProblemForm) -> list[TestCase]:
    """Test cases of one column.

    Args:
        text: the column's value, in either encoding.
        where: file, line and column, for messages.
        form: what the problem asks for; tests of another kind are an error.

    Raises:
        UserError: the text cannot be decoded, or a test is not of the problem's kind.
    """
    try:
        rows = json.loads(_as_json(text))
        kinds = {row["testtype"] for row in rows}
        tests = [TestCase(input=_checked(row["input"]), output=_checked(row["output"])) for row in rows]
    except _DECODING_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(where, rule=f"holds no test cases ({reason})", fix="download the file again") from None
    if kinds - {_TEST_TYPE[form]}:
        raise UserError(
            where,
            rule=f"holds {', '.join(sorted(map(str, kinds)))} tests, and metadata.func_name makes it a {form} problem",
            fix="mend metadata.func_name or the tests",
        )
    return tests


def _checked(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"input and output are text, and one is a {type(value).__name__}")
    return value


def _as_json(text: str) -> str:
    """``text`` itself where it is JSON, else what is packed in it. Raises what its decoders raise."""
    try:
        json.loads(text)
    except json.JSONDecodeError:
        value: Any = _TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(text, validate=True)))).load()
        if not isinstance(value, str):
            raise TypeError(f"the pickle holds a {type(value).__name__} instead of text") from None
        return value
    return text
