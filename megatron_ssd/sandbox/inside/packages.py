"""Imports of the packages that the host named, and of no other package that lies beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class NamedPackages(MetaPathFinder):
    """Finds top-level packages by name.

    Args:
        folders: name -> the folder that the package is in.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = dict(folders)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As ``importlib`` asks for it; what is inside a package Python finds by itself."""
        folder = self._folders.get(fullname)
        return None if folder is None else PathFinder.find_spec(fullname, [folder])
