"""Turns command-line arguments into checked configurations with Hydra.

The YAML files state differences only, since every default is in the dataclasses. So an override may name a key that no
YAML has, and the dataclasses refuse a key that does not exist. ``model=tiny`` and ``+model=tiny`` mean the same.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
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
from megatron_ssd.config.reference import dotted_keys
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
# Text that Hydra's grammar reads as it is: it begins as no number and is no word with a meaning.
_PLAIN_TEXT = re.compile(r"(?!(?:null|true|false|yes|no|on|off|inf|nan)$)[A-Za-z/][A-Za-z0-9_./-]*", re.IGNORECASE)
_LISTS = ("benchmark", "contamination")  # groups of which a list of names may be given
_DERIVED_GROUP = "scale"  # chosen by the experiment and its problems (see config.yaml)


@dataclass(frozen=True)
class ConfigSource:
    """Where configurations come from, besides ``hydra_configs``. Both are as Hydra's options of these names.

    Args:
        config_dir: a folder with files of groups, which is searched first; None if there is none.
        config_name: the root, a file of that folder or of ``hydra_configs``.
    """

    config_dir: Path | None = None
    config_name: str = "config"

    @property
    def options(self) -> list[str]:
        """The options with which another script has the same source."""
        folder = [] if self.config_dir is None else [f"--config-dir={self.config_dir}"]
        return folder if self.config_name == "config" else [*folder, f"--config-name={self.config_name}"]


SHIPPED = ConfigSource()
INFO_CHOICES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # of Hydra's --info


@contextlib.contextmanager
def _open_hydra(source: ConfigSource, overrides: Sequence[str] = ()) -> Iterator[Hydra]:
    """Hydra with the search path of ``source`` and of an override of ``hydra.searchpath``.

    Raises:
        ConfigError: the folder of ``source`` does not exist.
    """
    # As Hydra's own entry does it. Its public function takes one folder.
    paths = create_config_search_path(str(CONFIG_DIR))
    if source.config_dir is not None:
        require(source.config_dir.is_dir(), f"--config-dir {source.config_dir}", rule="is not a folder",
                fix="name a folder with YAML files in folders such as model/ and experiment/")  # fmt: skip
        paths.prepend("command-line", f"file://{source.config_dir.resolve()}", SearchPathQuery(provider="main"))
    for path in _search_path(overrides):  # before the last entry, which has no files
        url = path if "://" in path else f"file://{Path(path).resolve()}"
        paths.prepend("hydra.searchpath", url, SearchPathQuery(provider="schema"))
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2(task_name="megatron_ssd", config_search_path=paths)
    finally:
        GlobalHydra.instance().clear()


def groups(source: ConfigSource = SHIPPED) -> dict[str, list[str]]:
    """The names that can be chosen in each group, both sorted."""
    with _open_hydra(source) as hydra:
        return _groups(hydra)


def _groups(hydra: Hydra) -> dict[str, list[str]]:
    loader = hydra.config_loader
    names = sorted(name for name in loader.list_groups("") if name[0] != "." and name not in (_DERIVED_GROUP, "hydra"))
    return {name: sorted(choice for choice in loader.get_group_options(name) if choice[0] != ".") for name in names}


def _hydra_overrides(overrides: Sequence[str], hydra: Hydra) -> list[str]:
    """``overrides`` of the command line as Hydra takes them. Raises ``ConfigError``."""
    known = _groups(hydra)
    return [_hydra_override(override, known) for override in overrides if not _is_search_path(override)]


def compose_config(
    overrides: Sequence[str],
    source: ConfigSource = SHIPPED,
    *,
    capability: Callable[[], Capability | None] = visible_capability,
) -> RunConfig:
    """The checked configuration that ``overrides`` ask for (see ``compose_values``). Raises ``ConfigError``."""
    try:
        return build(RunConfig, compose_values(overrides, source, capability=capability))
    except NotTextError as error:  # for example run_dir=[1], which is a list
        values = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
        key = error.what.partition(" = ")[0]
        fix = _advice(key, values[key]) if key in values else error.fix
        raise ConfigError(error.what, rule=error.rule, fix=fix) from None


def text_override(key: str, text: str) -> str:
    """``KEY=VALUE`` that gives ``key`` exactly this text, whatever characters it has. It is quoted only if it must be.

    A pair of braces after a dollar would be an interpolation; a backslash before it keeps it as it is.
    """
    if _PLAIN_TEXT.fullmatch(text):
        return f"{key}={text}"
    literal = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    return f"{key}={QuotedString(literal, Quote.single).with_quotes()}"


def compose_values(
    overrides: Sequence[str],
    source: ConfigSource = SHIPPED,
    *,
    capability: Callable[[], Capability | None] = visible_capability,
) -> dict[str, Any]:
    """The composed YAML as nested dictionaries, with interpolations resolved.

    Args:
        overrides: as on the command line.
        source: the YAML files.
        capability: asked for the compute capability of the GPU to train on if the configuration depends on it.

    Raises:
        ConfigError: an override or a group choice cannot be applied.
    """
    try:
        with _open_hydra(source, overrides) as hydra:
            composed = compose(source.config_name, overrides=_hydra_overrides(overrides, hydra))
            _fill_model(composed, overrides)  # before interpolations are resolved: run_dir has the model's name
            values = _plain(composed)
            fit_context(values)
            fit_precision(values, capability)
            return values
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides) from None


def show_info(what: str, overrides: Sequence[str], source: ConfigSource) -> None:
    """Print what Hydra's ``--info`` prints. Raises ``ConfigError``."""
    try:
        with _open_hydra(source, overrides) as hydra:
            hydra.show_info(what, source.config_name, _hydra_overrides(overrides, hydra))
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides) from None


def complete(arguments: Sequence[str], source: ConfigSource) -> None:
    """Do what Hydra's ``--shell-completion`` does: ``install=SHELL``, ``uninstall=SHELL`` or ``query=SHELL``.

    Hydra answers a query with groups and the keys of YAML files. Keys of the dataclasses are added.
    """
    try:
        with _open_hydra(source) as hydra:
            hydra.shell_completion(source.config_name, list(arguments))
        word = os.environ.get("COMP_LINE", " ").rpartition(" ")[2]
        if any(argument.startswith("query=") for argument in arguments) and word and "=" not in word:
            print(" ".join(f"{key}=" for key in dotted_keys(RunConfig) if key.startswith(word)))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explain(error, arguments) from None


def select(values: dict[str, Any], section: str | None) -> dict[str, Any]:
    """The part of ``values`` at a dotted path; all of them for None. Raises ``ConfigError`` if there is none."""
    found: Any = values
    for name in section.split(".") if section else ():
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise ConfigError(
            f"--package {section}",
            rule="there is no such section here",
            fix="--cfg all has every section, --cfg job has those in which a key is set: "
            f"{', '.join(key for key, value in values.items() if isinstance(value, dict))}",
        )
    return found


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


def base_run(base: BaseConfig, source: ConfigSource) -> tuple[list[str], Path]:
    """(overrides, run_dir) of the run that makes a base model. Equal configurations share one run_dir."""
    overrides = [f"experiment={base.experiment}", *base.overrides]
    settings = asdict(compose_config(overrides, source))
    used = keys_that_are_set({section: settings[section] for section in _OF_BASE})
    run_dir = Path(base.base_dir) / hash_json(used)[:12]
    return [*overrides, text_override("run_dir", str(run_dir))], run_dir


def _plain(composed: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _hydra_override(override: str, known: dict[str, list[str]]) -> str:
    key, separator, value = override.partition("=")
    group = key.lstrip("+~")
    if group.startswith(("hydra.", "hydra/")):
        raise ConfigError(f"argument {override!r}", rule="Hydra's own folders, logging and launchers are not used",
                          fix="set run_dir for the folder of a run, and --multirun for several")  # fmt: skip
    if key.startswith("~"):
        return override
    if not separator:
        raise _not_an_override(override)
    if group not in known:
        _check_grammar(group, value)
        return f"++{group}={value}"
    if not (CONFIG_DIR / group).is_dir():
        return override  # a group of the user, which is in no list of defaults unless their root has it
    require(value[:1] == "[" or "," not in value, f"{group} = {value}", rule="is several runs in Hydra's grammar",
            fix=f"add --multirun to start each of them, or write {group}=NAME")  # fmt: skip
    require(value[:1] != "[" or group in _LISTS, f"{group} = {value}", rule="takes one name", fix=f"write {group}=NAME")
    for name in value.strip("[]").split(","):
        if name.strip() not in (*known[group], "null", ""):
            raise _no_such_choice(group, name.strip(), known[group])
    return f"~{group}" if value == "null" else f"{group}={value}"  # Hydra has no other way to choose none


def sweep_values(override: str) -> list[str] | None:
    """The single overrides that ``KEY=A,B,C`` stands for in Hydra's grammar; None if it is one value."""
    if "=" not in override:
        return None
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return None  # composing will say what is wrong
    if not parsed.is_sweep_override():
        return None
    return [f"{override.partition('=')[0]}={value}" for value in parsed.sweep_string_iterator()]


def _is_search_path(override: str) -> bool:
    return override.lstrip("+").partition("=")[0] == "hydra.searchpath"


def _search_path(overrides: Sequence[str]) -> list[str]:
    """The folders of an override ``hydra.searchpath=[...]``. Raises ``ConfigError``."""
    given = [override for override in overrides if _is_search_path(override)]
    if not given:
        return []
    try:
        value = OverridesParser.create().parse_override(given[-1].lstrip("+")).value()
    except HydraException:
        value = None
    if not isinstance(value, list):
        raise ConfigError(f"argument {given[-1]!r}", rule="is not a list of folders",
                          fix="write it as 'hydra.searchpath=[file:///FOLDER]'")  # fmt: skip
    return [str(path) for path in value]


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
        rule, fix = "is several runs in Hydra's grammar", "add --multirun to start each of them; "
    except HydraException:
        rule, fix = "has a character with a meaning in Hydra's grammar", ""
    raise ConfigError(f"argument {f'{key}={value}'!r}", rule=rule, fix=fix + _advice(key, value))


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
