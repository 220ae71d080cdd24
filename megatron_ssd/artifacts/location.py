"""Where a data set's files are: a file or folder on this machine, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from megatron_ssd.errors import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_files(path: str, *, key: str, ending: str | tuple[str, ...]) -> list[Path] | None:
    """Files of a data set, sorted by path; None where ``path`` is no local path and reads as a Hub id.

    Args:
        path: what the user named: a file, a folder (searched with its subfolders), or ``owner/name``.
        key: the configuration key it came from, for messages.
        ending: what the files' names end with, for example ``.parquet``; any of several.

    Raises:
        UserError: nothing is there, a file's name ends otherwise, the folder holds no such file, or one of them is a
            link that leads nowhere.
    """
    place = Path(path).expanduser()
    kinds = ending if isinstance(ending, str) else " or *".join(ending)
    if place.is_file():
        if not place.name.endswith(ending):
            raise UserError(
                f"{key} = {path}", rule=f"is no *{kinds} file by its name", fix="convert it, or give it the right name"
            )
        return [place]
    if place.is_dir():
        found = sorted(file for file in place.rglob("*") if file.name.endswith(ending))
        for file in found:
            if file.is_symlink() and not file.exists():
                raise UserError(f"{file}", rule="is a link that leads nowhere", fix=f"download {path} again")
        files = [file for file in found if file.is_file()]
        if not files:
            raise UserError(
                f"{key} = {path}",
                rule=f"the folder holds no *{kinds} file",
                fix=f"point {key} at the folder that does",
            )
        return files
    if is_hub_id(path):
        return None
    raise UserError(f"{key} = {path}", rule="does not exist", fix=f"set {key} to a file, a folder or a Hub id")


def is_hub_id(path: str) -> bool:
    """Whether ``path`` reads as ``owner/name``."""
    return _HUB_ID.fullmatch(path) is not None


def hub_error(path: str, *, key: str, error: Exception) -> UserError:
    """What to tell the user when ``path`` is no local path and the Hub did not serve it as ``owner/name`` either."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"{key} = {path}",
        rule=f"is not on this machine, and the Hugging Face Hub did not serve it ({type(error).__name__}: {reason})",
        fix=f"check the spelling and the network, or download it and set {key} to the folder",
    )
