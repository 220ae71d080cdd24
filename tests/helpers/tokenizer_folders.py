"""Changed copies of tokenizer folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def with_template(source: Path, target: Path, template: object) -> Path:
    """Copy the folder ``source`` to ``target`` with another chat template, or without one if ``template`` is None."""
    shutil.copytree(source, target)
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config if template is None else {**config, "chat_template": template}))
    return target
