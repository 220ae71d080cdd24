"""Opens the benchmarks that a run evaluates.

Invariants: order and content of the problems depend on the configuration and the files alone; ids are unique within a
benchmark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_ssd.artifacts.hashing import hash_json, remembered_sha256
from megatron_ssd.artifacts.hub import local_path
from megatron_ssd.config.problems import BenchmarkConfig, BenchmarkSetConfig, MinicodeConfig
from megatron_ssd.errors import UserError
from megatron_ssd.problems import livecodebench, minicode
from megatron_ssd.problems.assert_scripts import read_assert_scripts
from megatron_ssd.problems.downloads import RELEASES, released_file
from megatron_ssd.problems.errata import Errata, apply_errata
from megatron_ssd.problems.livecodebench import BenchmarkKeys
from megatron_ssd.schema import Problem

_MBPP_TEST = range(11, 511)
_NOT_CONTENT = ("path", "revision", "errata")  # where the file is, and whether its flawed problems count


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark as it is evaluated: the problems that count, in order, and the errata of all of them."""

    name: str
    format: str
    problems: list[Problem]
    errata: Errata

    @property
    def identity(self) -> str:
        """Hash of the problems with their tests."""
        return hash_json([problem.to_json() for problem in self.problems])


def load_benchmarks(config: BenchmarkConfig, world: MinicodeConfig) -> list[Benchmark]:
    """Every benchmark of the run. Raises what ``load_problems`` and ``apply_errata`` raise."""
    benchmarks = []
    for name, one in config.sets.items():
        problems, errata = apply_errata(load_problems(name, one, world), one.errata)
        benchmarks.append(Benchmark(name=name, format=one.format, problems=problems, errata=errata))
    return benchmarks


def load_problems(name: str, one: BenchmarkSetConfig, world: MinicodeConfig) -> list[Problem]:
    """The problems of the benchmark ``name`` with their tests, including those in the errata.

    Raises:
        UserError: the benchmark cannot be read, or its window is empty.
    """
    if one.format == "minicode":
        return minicode.test_problems(world)[: one.limit]
    if one.format == "livecodebench":
        return livecodebench.read_benchmark(one, _keys(name))
    problems = read_assert_scripts(one.format, _file(name, one))
    if one.format == "mbpp" and one.split == "test":
        problems = [problem for problem in problems if problem.id.isdigit() and int(problem.id) in _MBPP_TEST]
    if not problems:
        raise UserError(f"benchmark.sets.{name}.split = {one.split}", rule="the file has no task from 11 to 510",
                        fix="use split=all")  # fmt: skip
    return problems[: one.limit]


def source_hashes(config: BenchmarkConfig | None, world: MinicodeConfig) -> Iterator[tuple[str, str]]:
    """(name, hash of what its problems are read from) of each benchmark, without reading the problems.

    Raises:
        UserError: there is no such file.
    """
    for name, one in config.sets.items() if config else ():
        section = dataclasses.asdict(one)
        window = {key: value for key, value in section.items() if key not in _NOT_CONTENT and value is not None}
        if one.format == "minicode":
            content: object = world.of_problems("test")
        elif one.format == "livecodebench":
            content = livecodebench.benchmark_table(one, _keys(name)).identity
        else:
            content = RELEASES[one.format].sha256 if one.path is None else remembered_sha256(_file(name, one))
        yield name, hash_json([window, content])


def _file(name: str, one: BenchmarkSetConfig) -> Path:
    """The local file of a benchmark that is not minicode or LiveCodeBench."""
    key = f"benchmark.sets.{name}.path"
    if one.path is None:
        return released_file(one.format, key=key)
    path = local_path(one.path)
    if not path.is_file():
        raise UserError(f"{key} = {one.path}", rule="is not a file",
                        fix="name the file of the benchmark, or leave it out to download it")  # fmt: skip
    return path


def _keys(name: str) -> BenchmarkKeys:
    return BenchmarkKeys.of(f"benchmark.sets.{name}")
