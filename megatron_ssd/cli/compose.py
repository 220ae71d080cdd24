"""Turns command-line arguments into checked configurations with Hydra.

The YAML files state differences only, since every default is in the dataclasses. So an override may name a key that no
YAML has, and the dataclasses refuse a key that does not exist. ``model=tiny`` and ``+model=tiny`` mean the same.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

import megatron_ssd
from megatron_ssd.artifacts.hashing import hash_json
from megatron_ssd.artifacts.manifest import keys_that_are_set
from megatron_ssd.cli.auto_precision import fit_precision
from megatron_ssd.cli.model_section import fit_context, model_section
from megatron_ssd.config.build import build
from megatron_ssd.config.run import BaseConfig, RunConfig
from megatron_ssd.errors import ConfigError, NotTextError, first_line, require
from megatron_ssd.nvidia_smi import Capability, visible_capability

CONFIG_DIR = Path(megatron_ssd.__file__).resolve().parents[1] / "hydra_configs"

# Sections on which a base model depends. The others belong to stages that are not run for it.
_OF_BASE = ("objective", "seed", "model", "minicode", "parallel", "precision", "cluster", "moe", "optimizer",
            "training", "checkpoint", "export")  # fmt: skip
# Files of groups that had another name: what to choose instead, by "group=name".
RENAMED_FILES = {
    "experiment=b200_mxfp8": "experiment=b200_64k",
    "experiment=b200_bf16": "experiment=b200_64k precision=bf16",
    "experiment=b200_tp_pp": "experiment=b200_64k parallel=tp2_pp2_cp2_ep4",
    "experiment=h200_blockwise": "experiment=h200_64k precision=fp8_blockwise",
    "experiment=h100_blockwise": "experiment=h100x16_64k precision=fp8_blockwise",
    "parallel=tp2_cp8_ep16": "parallel=cp8_ep16",
}
_LISTS = ("benchmark", "contamination")  # groups of which a list of names may be given
_DERIVED_GROUP = "scale"  # chosen by the experiment and its problems (see config.yaml)


def groups(config_dir: Path = CONFIG_DIR) -> dict[str, list[str]]:
    """The names that can be chosen in each group, both sorted."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("[!.]*.yaml"))
        for folder in sorted(config_dir.glob("[!.]*"))
        if folder.is_dir() and folder.name != _DERIVED_GROUP
    }


def compose_config(
    overrides: Sequence[str],
    config_dir: Path = CONFIG_DIR,
    *,
    capability: Callable[[], Capability | None] = visible_capability,
) -> RunConfig:
    """The checked configuration that ``overrides`` ask for (see ``compose_values``). Raises ``ConfigError``."""
    try:
        return build(RunConfig, compose_values(overrides, config_dir, capability=capability))
    except NotTextError as error:  # for example run_dir=[1], which is a list
        values = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
        key = error.what.partition(" = ")[0]
        fix = _advice(key, values[key]) if key in values else error.fix
        raise ConfigError(error.what, rule=error.rule, fix=fix) from None


def text_override(key: str, text: str) -> str:
    """``KEY=VALUE`` that gives ``key`` exactly this text, whatever characters it has.

    A pair of braces after a dollar would be an interpolation; a backslash before it keeps it as it is.
    """
    literal = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    return f"{key}={QuotedString(literal, Quote.single).with_quotes()}"


def compose_values(
    overrides: Sequence[str],
    config_dir: Path = CONFIG_DIR,
    *,
    capability: Callable[[], Capability | None] = visible_capability,
) -> dict[str, Any]:
    """The composed YAML as nested dictionaries, with interpolations resolved.

    Args:
        overrides: as on the command line.
        config_dir: folder of the YAML groups.
        capability: asked for the compute capability of the GPU to train on if the configuration depends on it.

    Raises:
        ConfigError: an override or a group choice cannot be applied.
    """
    if not (config_dir / "config.yaml").is_file():
        raise ConfigError(f"--config-dir {config_dir}", rule="has no config.yaml", fix="name a hydra_configs folder")
    known = groups(config_dir)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_dir), version_base="1.3"):
            composed = compose("config", overrides=[_hydra_override(override, known) for override in overrides])
            _fill_model(composed, overrides)  # before interpolations are resolved: run_dir has the model's name
            values = _plain(composed)
            fit_context(values)
            fit_precision(values, capability)
            return values
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides) from None


def _fill_model(composed: DictConfig, overrides: Sequence[str]) -> None:
    """Give ``composed`` the section of the model that ``model.path`` names."""
    section = composed.get("model")
    if not isinstance(section, DictConfig):
        return
    keys = (override.lstrip("+").partition("=")[0] for override in overrides)
    overridden = {key.split(".")[1] for key in keys if key.startswith("model.")}
    given = _plain(section)
    filled = model_section(given, overridden)
    OmegaConf.set_struct(section, False)
    for key in given.keys() - filled.keys():
        del section[key]
    for key in filled:
        if key not in given or given[key] != filled[key]:  # others may be text with a dollar, which stays escaped
            section[key] = filled[key]


def values_of_tool(arguments: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` arguments of a tool without groups as nested dictionaries. Raises ``ConfigError``."""
    for argument in arguments:
        if "=" not in argument:
            raise _not_an_override(argument)
    try:
        return _plain(OmegaConf.from_dotlist(list(arguments)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise _explain(error, arguments) from None


def base_run(base: BaseConfig, config_dir: Path) -> tuple[list[str], Path]:
    """(overrides, run_dir) of the run that makes a base model. Equal configurations share one run_dir."""
    overrides = [f"experiment={base.experiment}", *base.overrides]
    settings = asdict(compose_config(overrides, config_dir))
    used = keys_that_are_set({section: settings[section] for section in _OF_BASE})
    run_dir = Path(base.base_dir) / hash_json(used)[:12]
    return [*overrides, text_override("run_dir", str(run_dir))], run_dir


def _plain(composed: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _hydra_override(override: str, known: dict[str, list[str]]) -> str:
    key, separator, value = override.partition("=")
    group = key.lstrip("+")
    if key.startswith("~"):
        return override
    if not separator:
        raise _not_an_override(override)
    if group not in known:
        _check_grammar(group, value)
        return f"++{group}={value}"
    require(value[:1] != "[" or group in _LISTS, f"{group} = {value}", rule="takes one name", fix=f"write {group}=NAME")
    for name in value.strip("[]").split(","):
        if name.strip() not in (*known[group], "null", ""):
            raise _no_such_choice(group, name.strip(), known[group])
    return f"~{group}" if value == "null" else f"{group}={value}"  # Hydra has no other way to choose none


def _no_such_choice(group: str, name: str, known: list[str]) -> ConfigError:
    new = RENAMED_FILES.get(f"{group}={name}")
    near = [choice for choice in known if choice[0] == name[0]]  # for cp16 not ep16
    close = [new] if new else difflib.get_close_matches(name, near, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    if new and group == "experiment":
        meant += "Experiments for GPUs are named by the longest sample: 64k, 32k or 8k tokens. "
    fix = f"{meant}{'The' if meant else 'the'} choices are {', '.join(known)} and null"
    return ConfigError(f"{group} = {name!r}", rule="there is no such choice", fix=fix)


def _check_grammar(key: str, value: str) -> None:
    """Raise ``ConfigError`` if ``value`` is not one value in Hydra's grammar, as a path with ``=`` or ``,`` is not."""
    parser = OverridesParser.create()
    try:
        parser.parse_override(f"++{key}=0")
    except HydraException:
        return  # the key is wrong, and Hydra will say how
    try:
        if not parser.parse_override(f"++{key}={value}").is_sweep_override():
            return
        rule = "is a list of runs in Hydra's grammar"
    except HydraException:
        rule = "has a character with a meaning in Hydra's grammar"
    raise ConfigError(f"argument {f'{key}={value}'!r}", rule=rule, fix=_advice(key, value))


def _advice(key: str, value: str) -> str:
    override = text_override(key, value)
    typed = shlex.quote(override) if set(override) & set('"$`\\!') else f'"{override}"'  # the second is easier to read
    return f"if the value is text, quote it for Hydra and for the shell: {typed}"


def _not_an_override(argument: str) -> ConfigError:
    return ConfigError(f"argument {argument!r}", rule="an override is KEY=VALUE", fix="see --help")


def _explain(error: Exception, arguments: Sequence[str]) -> ConfigError:
    reason = error.problem if isinstance(error, MarkedYAMLError) else None  # its text begins with what was read
    rule = (reason or first_line(error)).rstrip(".")
    return ConfigError(f"arguments {' '.join(arguments)!r}", rule=rule, fix="see --help for groups and keys")
