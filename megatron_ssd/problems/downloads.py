"""Downloads the published files of HumanEval, MBPP and their extensions by EvalPlus.

Each is pinned by the commit in its address and by its hash. A file is kept in ``~/.cache/megatron_ssd/benchmarks``
(``$XDG_CACHE_HOME``) and downloaded once.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from megatron_ssd.artifacts.atomic import cache_entry
from megatron_ssd.artifacts.hashing import cache_folder, sha256_file
from megatron_ssd.errors import UserError

_GITHUB = "https://raw.githubusercontent.com"
_SECONDS = 30  # without an answer


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published file: its address, and the SHA-256 of its content."""

    url: str
    sha256: str


RELEASES = {
    "humaneval": Release(
        url=f"{_GITHUB}/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d/data/HumanEval.jsonl.gz",
        sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    ),
    "humaneval_plus": Release(  # release v0.1.10
        url=f"{_GITHUB}/evalplus/humanevalplus_release/200defce9e3429d28ca215b6dd061c0f7f31c18b/HumanEvalPlus.jsonl.gz",
        sha256="272720b90ac375502c8ed23cd791c2a93dfb22a911641a494da74a426c09f101",
    ),
    "mbpp": Release(  # the full set of google-research, as DeepSeek-Coder's repository has it
        url=f"{_GITHUB}/deepseek-ai/DeepSeek-Coder/2f9fd85927c669dae3c0fbb2d607274023af243e/Evaluation/MBPP/data/"
        "mbpp.jsonl",
        sha256="ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
    ),
    "mbpp_plus": Release(  # release v0.2.0
        url=f"{_GITHUB}/evalplus/mbppplus_release/dadf43da556a00f7bacd71cb154f2932757d9144/MbppPlus.jsonl.gz",
        sha256="af43697e8791c4c149bdfd6b489d8b5412507551ac20e28a439f650b8225db63",
    ),
}


def released_file(format_: str, *, key: str) -> Path:
    """The published file of a format, which is downloaded if it is not on this machine yet.

    Args:
        format_: one of ``RELEASES``.
        key: the configuration key that names a file instead, for messages.

    Raises:
        UserError: the file cannot be downloaded, or it is not the one that was published.
    """
    release = RELEASES[format_]
    path = cache_folder() / "benchmarks" / release.sha256[:16] / release.url.rpartition("/")[2]
    if path.is_file() and sha256_file(path) == release.sha256:
        return path
    fix = f"download it on a machine with a network, and set {key} to the file"
    try:
        with urllib.request.urlopen(release.url, timeout=_SECONDS) as answer:
            content = answer.read()
    except (OSError, HTTPException) as error:  # URLError is an OSError
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(f"{key} = null", rule=f"{release.url} could not be downloaded ({reason})", fix=fix) from None
    if (found := hashlib.sha256(content).hexdigest()) != release.sha256:
        raise UserError(f"{key} = null", rule=f"what {release.url} serves has the SHA-256 {found}, and the published "
                        f"file has {release.sha256}", fix=fix)  # fmt: skip
    with cache_entry(path) as unfinished:  # several processes may download at a time
        unfinished.write_bytes(content)
    return path
