"""Write the README's tree: one line a file, the first sentence of its own docstring or comment.

python tools/tree.py            # print it
python tools/tree.py --write    # put it between the marks in README.md
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tree: tools/tree.py -->", "<!-- end of tree -->"
FOLDERS = ("megatron_ssd", "launch", "tools", "benchmarks")
_WIDTH = 44


def tree() -> str:
    """The tree as a fenced block. Files without anything to say (empty ``__init__.py``) are left out."""
    listed = subprocess.run(["git", "ls-files", "--", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True)
    lines, shown = [], set()
    for name in sorted(listed.stdout.split()):
        path = ROOT / name
        summary = first_sentence(path)
        if not summary:
            continue
        folders = Path(name).parts[:-1]
        for depth in range(1, len(folders) + 1):
            if folders[:depth] not in shown:
                shown.add(folders[:depth])
                init = ROOT.joinpath(*folders[:depth], "__init__.py")
                about = first_sentence(init) if init.is_file() else ""
                lines.append(_line(depth - 1, f"{folders[depth - 1]}/", about))
        if path.name != "__init__.py":
            lines.append(_line(len(folders), path.name, summary))
    return "\n".join(["```", *lines, "```"])


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring or of a script's leading comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        doc = ast.get_docstring(ast.parse(text)) or ""
    else:
        comments = [line.lstrip("#").strip() for line in text.splitlines() if line.startswith("# ")]
        doc = "\n".join(comments) if path.suffix in (".sh", ".sbatch") else ""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)`\"])[.] ", paragraph + " ", maxsplit=1)[0].strip().rstrip(".")


def _line(depth: int, name: str, about: str) -> str:
    return f"{'  ' * depth + name:{_WIDTH}} {about}".rstrip()


def with_tree(readme: str) -> str:
    """``readme`` with the tree of today between its marks."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{tree()}\n{END}{tail}"


def main() -> None:
    """Print the tree, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update README.md")
    if parser.parse_args().write:
        readme = ROOT / "README.md"
        readme.write_text(with_tree(readme.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tree())


if __name__ == "__main__":
    main()
