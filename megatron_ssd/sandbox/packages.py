"""Packages of this environment that programs may import: where they are, and nothing else of where they are."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_ssd.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A top-level package: ``paths`` are its folder or file and its shared libraries, all of them in ``folder``."""

    name: str
    folder: Path
    paths: tuple[Path, ...]


def find_packages(names: Iterable[str]) -> list[Package]:
    """Where packages are installed. They are not imported.

    Args:
        names: top-level names, as a program imports them.

    Raises:
        UserError: one is not installed, or is part of Python itself.
    """
    return [_find(name) for name in names]


def _find(name: str) -> Package:
    spec = None if name in sys.stdlib_module_names else importlib.util.find_spec(name)
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        reason = (
            "is part of Python itself" if name in sys.stdlib_module_names else "is not installed in this environment"
        )
        raise UserError(
            f"evaluation.sandbox.packages: {name}", rule=reason, fix="install it, or leave it out of the list"
        )
    place = Path(str(next(iter(spec.submodule_search_locations or ()), spec.origin))).absolute()
    # Wheels carry shared libraries in a folder beside the package, which is named after the distribution.
    distributions = {name, *_distributions().get(name, ())}
    wanted = {f"{distribution}.libs".lower() for distribution in distributions}
    libraries = sorted(path for path in place.parent.glob("*.libs") if path.name.lower() in wanted)
    return Package(name=name, folder=place.parent, paths=(place, *libraries))


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Top-level name -> the distributions that it is from. Reads the record of every one, which takes a while."""
    return importlib.metadata.packages_distributions()
