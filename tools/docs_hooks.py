"""Hooks of mkdocs.yml that make the documentation complete without a network.

They add the configuration reference, turn links to source files into text, and refuse pages that load anything remote.

make docs
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron_ssd.config.reference import Key, keys_of  # noqa: E402  (MkDocs does not put the checkout on the path)
from megatron_ssd.config.run import RunConfig  # noqa: E402
from megatron_ssd.config.tools import ConvertConfig, GradeConfig, InspectConfig  # noqa: E402

_LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)")
_REMOTE = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(https?:)?//|<link[^>]*\shref=["']?(https?:)?//|"""
                     r"""(?:@import|url\()\s*["']?(https?:)?//""")  # fmt: skip
_TOOLS = {"grade.py": GradeConfig, "convert_checkpoint.py": ConvertConfig, "inspect_dataset.py": InspectConfig}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add reference/config.md."""
    files.append(File.generated(config, "reference/config.md", content="\n".join(_reference())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to files outside docs/, which the site does not contain, with their text and path."""
    docs = Path(config.docs_dir)

    def replaced(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if ":" in target:
            return match[0]
        path = (docs / page.file.src_uri).parent.joinpath(target).resolve()
        if path.is_relative_to(docs):
            return match[0]
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: {target} does not exist")
        name = str(path.relative_to(ROOT))
        return f"`{name}`" if text.strip("`") in name else f"{text} (`{name}`)"

    return _LINK.sub(replaced, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a page or style sheet that loads a script, style, font or image from a network."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            found = _REMOTE.search(path.read_text(encoding="utf-8"))
            if found:
                raise PluginError(f"{path} loads from a network: {found[0]}")


def _reference() -> Iterator[str]:
    yield "# Configuration keys"
    yield ""
    yield "Every key of `launch/` and of the tools that take the same overrides, as `SECTION.KEY=VALUE`. Groups such as"
    yield "`model=NAME` set several keys at once. `--cfg all` prints all keys with the values of a run."
    yield ""
    yield from _section("Top level", "", RunConfig)
    for key in keys_of(RunConfig):
        if key.section is not None:
            yield from _section(f"`{key.name}`", f"{key.name}.", key.section, note=_optional(key))
    yield "## Tools with keys of their own"
    yield ""
    for name, section in _TOOLS.items():
        yield from _section(f"`tools/{name}`", "", section, level=3)


def _optional(key: Key) -> str:
    return " The section is null unless it is chosen." if key.default == "null" else ""


def _section(title: str, prefix: str, section: type, *, level: int = 2, note: str = "") -> Iterator[str]:
    """A heading, what the section is for, and a table of its keys, followed by the sections in it."""
    yield f"{'#' * level} {title}"
    yield ""
    yield f"{_cleaned(section.__doc__ or '')}{note}"
    yield ""
    yield "| key | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    inner = []
    for key in keys_of(section):
        name, default = f"{prefix}{key.name}", f"`{key.default}`"
        if key.section is not None:
            default = "null" if key.default == "null" else ""
            inner.append((f"{name}.NAME." if key.kind.startswith("mapping") else f"{name}.", key.section))
        label = f"[`{name}`](#{name})" if key.section is not None and not prefix else f"`{name}`"
        yield f"| {label} | {key.kind} | {default} | {_cleaned(key.description)} |"
    yield ""
    for inner_prefix, inner_section in inner if prefix else ():
        yield from _section(f"`{inner_prefix.rstrip('.')}`", inner_prefix, inner_section, level=level + 1)


def _cleaned(docstring: str) -> str:
    lines = (line.strip() for line in docstring.strip().splitlines())
    return "\n".join(lines).replace("``", "`").replace("|", "\\|")
