"""Uploads what a run made to the Hugging Face Hub.

What is uploaded is made first, in ``run_dir/push``: links to the files of the published folder, its card and, for a
model, ``generation_config.json``. The published folder itself never changes, and it was made before the evaluation. So
its card has no scores, and its decode settings are those that were configured. Here they are those that the evaluation
chose.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, ModelCard, get_token
from huggingface_hub.errors import HTTPError

from megatron_ssd.artifacts.atomic import write_atomically
from megatron_ssd.artifacts.cards import CARD, samples_card
from megatron_ssd.artifacts.hf_config import GENERATION_CONFIG, generation_config
from megatron_ssd.artifacts.hub import is_hub_id
from megatron_ssd.artifacts.manifest import FILE_NAME, Manifest, check_outputs, read_manifest
from megatron_ssd.artifacts.stage import Stage
from megatron_ssd.config.generation import SamplingParams
from megatron_ssd.config.run import RunConfig
from megatron_ssd.config.training import PushConfig
from megatron_ssd.errors import UserError, first_line, require, shown
from megatron_ssd.evaluation.results import EvaluationResults
from megatron_ssd.evaluation.tables import score_tables
from megatron_ssd.formatting import aligned, counted
from megatron_ssd.report.data import read_evaluation

log = logging.getLogger(__name__)

_SOURCES = {"model": "export", "samples": "samples"}  # what is pushed -> the folder of the run
_KINDS: dict[str, Literal["model", "dataset"]] = {"model": "model", "samples": "dataset"}  # the same -> type on the Hub
_RESUME = "then run the same command again: what is on the Hub already is not sent twice"


def run_push(config: RunConfig) -> None:
    """Make the folder to upload, list its files and upload them; with ``dry_run`` only list them.

    Raises:
        UserError: a stage was not published, its files changed since, the evaluation is of another export, there is no
            token, or the Hub cannot be reached or refuses.
    """
    push = config.push
    require(push.repo is not None or config.dry_run, "push.repo = null", rule="no repository is named",
            fix="set push.repo=OWNER/NAME, or dry_run=true")  # fmt: skip
    for key, value in (("repo", push.repo), ("base_model", push.base_model)):
        require(value is None or is_hub_id(value), f"push.{key} = {value}", rule="is not an id on the Hub",
                fix="write OWNER/NAME")  # fmt: skip
    folder = make_folder(config)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    print("\n".join(aligned([[name, f"{size:,} bytes"] for name, size in sorted(files.items())])))
    seen_by = "private" if push.private else "public"
    print(f"{folder}: {counted(len(files), 'file')}, {sum(files.values()):,} bytes, for {push.repo or 'no repository'} "
          f"({_KINDS[push.what]}, {seen_by})", flush=True)  # fmt: skip
    if not config.dry_run:
        _upload(folder, push)


def make_folder(config: RunConfig) -> Path:
    """``run_dir/push/model`` or ``run_dir/push/samples``, made unless it is up to date. Raises as ``run_push``."""
    run_dir, what = Path(config.run_dir), config.push.what
    source = run_dir / _SOURCES[what]
    manifest = read_manifest(source)
    check_outputs(source, manifest, fix=f"restore it, or remove {source} and make it again")
    inputs = {source.name: manifest.content_hash}
    results: list[EvaluationResults] = []
    if what == "model" and (run_dir / "eval" / FILE_NAME).is_file():
        inputs["eval"] = _evaluation_of(run_dir, manifest)
        results = read_evaluation(run_dir)
    elif what == "model":
        log.info("push: no evaluation was published: the card has no scores, and %s the configured decode settings",
                 GENERATION_CONFIG)  # fmt: skip
    stage = Stage(name=what, run_dir=run_dir / "push", config={"base_model": config.push.base_model}, inputs=inputs,
                  replace=config.replace, restarts=True, made_by="launch/push.py")  # fmt: skip
    if stage.is_current():
        return stage.final
    own = {CARD: samples_card(config)} if what == "samples" else _own_files(source, results, config.push)
    work = stage.begin()
    linked = {one["path"]: one["sha256"] for one in manifest.outputs if one["path"] not in own}
    for name in linked:
        (work / name).parent.mkdir(exist_ok=True)
        try:
            os.link(source / name, work / name)
        except OSError:  # a file system without links
            shutil.copyfile(source / name, work / name)
    for name, text in own.items():
        write_atomically(work / name, text)
    stage.publish(known_hashes=linked)
    return stage.final


def _evaluation_of(run_dir: Path, export: Manifest) -> str:
    """Content hash of the evaluation. Raises ``UserError`` if it is not one of this export."""
    evaluation = read_manifest(run_dir / "eval")
    if evaluation.inputs.get("export") != export.content_hash:
        raise UserError(
            f"folder {run_dir / 'eval'}",
            rule="does not measure the model in export/",
            fix="run launch/evaluate.py with replace=true, or move eval/ away to upload without scores",
        )
    return evaluation.content_hash


def _own_files(export: Path, results: list[EvaluationResults], push: PushConfig) -> Mapping[str, str]:
    """Name -> text of the files that differ from those of the export."""
    if not (export / CARD).is_file():
        raise UserError(f"folder {export}", rule=f"has no {CARD}: it is from an earlier version",
                        fix="run launch/export.py with replace=true")  # fmt: skip
    card = ModelCard((export / CARD).read_text(encoding="utf-8"))
    if push.base_model is not None:
        card.data["base_model"] = push.base_model
    if not results:
        return {CARD: str(card)}
    # Each benchmark chooses its own setting, and a model has one default: that of the first benchmark.
    best = next(cell for cell in results[0].grid if cell.model == "ssd" and cell.chosen)
    chosen = SamplingParams(**{field.name: getattr(best, field.name) for field in fields(SamplingParams)})
    source = f"`{GENERATION_CONFIG}` has {chosen.label}, the best setting on {results[0].benchmark}."
    tables = [f"```\n{score_tables(one)}\n```" for one in results]
    remarks = [f"{remark[:1].upper()}{remark[1:]}." for one in results for remark in one.remarks]
    card.text = "\n\n".join([card.text.rstrip(), "## Scores", source, *tables, *remarks]) + "\n"
    values = json.dumps(generation_config(export, chosen), indent=2) + "\n"
    return {CARD: str(card), GENERATION_CONFIG: values}


def _upload(folder: Path, push: PushConfig) -> None:
    repo, kind = str(push.repo), _KINDS[push.what]
    if get_token() is None:
        raise UserError(f"push.repo = {repo}", rule="the Hub asks for a token, and there is none",
                        fix=f"run `hf auth login` or set HF_TOKEN, {_RESUME}")  # fmt: skip
    api = HfApi()
    try:
        api.create_repo(repo, repo_type=kind, private=push.private, exist_ok=True)
        _check_visibility(push, is_private=bool(api.repo_info(repo, repo_type=kind).private))
        commit = api.upload_folder(
            repo_id=repo, repo_type=kind, folder_path=folder, commit_message=f"Upload {push.what} with megatron-ssd"
        )
    except UserError:
        raise
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(
            f"push.repo = {repo}",
            rule=f"the Hub cannot be reached or refuses ({type(error).__name__}: {first_line(error)})",
            fix=f"check network, token and name, {_RESUME}; {folder} is complete",
        ) from None
    log.info("push: uploaded to %s", commit.commit_url)


def _check_visibility(push: PushConfig, *, is_private: bool) -> None:
    """Raise ``UserError`` if the repository existed and is not what ``push.private`` says."""
    if is_private != push.private:
        raise UserError(
            f"push.private = {shown(push.private)}",
            rule=f"{push.repo} exists and is {'private' if is_private else 'public'}",
            fix=f"set push.private={shown(is_private)}, or change the repository's settings on the Hub",
        )
