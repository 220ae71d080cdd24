"""Training problems from the columns of rStar-Coder's ``seed_sft``: question_id, question, starter_code.

Answers, verdicts and every other column stay unread: SSD samples its own responses. A problem asks for a function where
its starter code holds more than white space, for a program on standard input otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from megatron_ssd.errors import UserError
from megatron_ssd.problems.location import find_files, hub_error
from megatron_ssd.schema import Problem

COLUMNS = ("question_id", "question", "starter_code")
_HUB_FOLDER = "seed_sft"
_KEY = "problems.path"


def read_problems(path: str) -> Iterator[Problem]:
    """Every row as a problem, in file order, blank and repeated ones included.

    Ids are the rows' own; a repeated one gets ``#2``, ``#3``, ... in order of appearance, so that each stays unique.

    Args:
        path: a folder of parquet files, one parquet file, or a Hub id such as ``microsoft/rStar-Coder``.

    Raises:
        UserError: nothing is at ``path``, a file is no parquet file, or a column is missing.
    """
    files = find_files(path, key=_KEY, ending=".parquet")
    tables = _hub_tables(path) if files is None else _local_tables(files)
    times_seen: dict[str, int] = {}
    for row in itertools.chain.from_iterable(_rows(name, stream) for name, stream in tables):
        id_ = str(row["question_id"])
        count = times_seen[id_] = times_seen.get(id_, 0) + 1
        starter_code = row["starter_code"] or ""
        yield Problem(
            id=id_ if count == 1 else f"{id_}#{count}",
            source="rstar_coder",
            statement=(row["question"] or "").strip(),
            form="function" if starter_code.strip() else "stdin",
            starter_code=starter_code if starter_code.strip() else "",
        )


def _local_tables(files: list[Path]) -> Iterator[tuple[str, IO[bytes]]]:
    for file in files:
        with file.open("rb") as stream:
            yield str(file), stream


def _hub_tables(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Files opened on the Hub itself: parquet is read by columns, so the responses never travel."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import HTTPError

    try:
        hub = HfFileSystem()
        names = sorted(hub.glob(f"datasets/{path}/{_HUB_FOLDER}/*.parquet"))
        if not names:
            raise FileNotFoundError(f"no {_HUB_FOLDER}/*.parquet in it")
        for name in names:
            with hub.open(name, "rb") as stream:
                yield name, stream
    except (OSError, HTTPError) as error:
        raise hub_error(path, key=_KEY, error=error) from error


def _rows(name: str, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(stream) as table:
            _check_columns(name, table.schema_arrow.names)
            for batch in table.iter_batches(columns=list(COLUMNS)):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"file {name}", rule=f"is no parquet file ({reason})", fix="download it again") from None


def _check_columns(where: str, names: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UserError(
            f"{where} with columns {', '.join(names)}",
            rule=f"has no column {', '.join(missing)}",
            fix=f"{_KEY} wants rStar-Coder's {_HUB_FOLDER}: {', '.join(COLUMNS)}",
        )
