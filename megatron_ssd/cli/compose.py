"""Hydra's groups and overrides to a checked ``RunConfig``.

The YAML files state differences only, since every default lives in the dataclasses. So an override may name a key that
no YAML has, and it is the dataclasses that refuse a key that does not exist. A group may be chosen as ``model=tiny``
and as ``+model=tiny`` alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import megatron_ssd
from megatron_ssd.config.build import build_config
from megatron_ssd.config.run import RunConfig
from megatron_ssd.errors import ConfigError

CONFIG_DIR = Path(megatron_ssd.__file__).resolve().parents[1] / "hydra_configs"


# Follows from the experiment and its problems (see config.yaml) and is never chosen by hand.
_DERIVED_GROUP = "scale"


def groups(config_dir: Path = CONFIG_DIR) -> dict[str, list[str]]:
    """Group -> the names that can be chosen, both sorted."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(config_dir.iterdir())
        if folder.is_dir() and folder.name != _DERIVED_GROUP
    }


def compose_values(overrides: list[str], config_dir: Path = CONFIG_DIR) -> dict[str, Any]:
    """The composed YAML as nested dictionaries, interpolations resolved.

    Raises:
        ConfigError: an override or a group choice cannot be applied.
    """
    if not (config_dir / "config.yaml").is_file():
        raise ConfigError(f"--config-dir {config_dir}", rule="holds no config.yaml", fix="name a hydra_configs folder")
    known = groups(config_dir)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_dir), version_base="1.3"):
            composed = compose("config", overrides=[_normal(override, known) for override in overrides])
            values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, overrides) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def compose_config(overrides: list[str], config_dir: Path = CONFIG_DIR) -> RunConfig:
    """The checked configuration that ``overrides`` ask for. Raises ``ConfigError``."""
    return build_config(compose_values(overrides, config_dir))


def _normal(override: str, known: dict[str, list[str]]) -> str:
    """One override in the form that Hydra takes it in."""
    key, separator, value = override.partition("=")
    bare = key.lstrip("+")
    if not separator:
        if key.startswith("~"):
            return override
        raise ConfigError(f"argument {override!r}", rule="an override is KEY=VALUE", fix="see --help")
    if key.startswith("~"):
        return override
    if bare in known and "." not in bare:
        for name in value.strip("[]").split(","):  # several of a group where their keys can stand side by side
            if name.strip() in known[bare] or name.strip() in ("null", ""):
                continue
            raise ConfigError(f"{bare} = {name.strip()!r}", rule="there is no such file in that group",
                              fix=f"choose one of {', '.join(known[bare])}")  # fmt: skip
        return f"{bare}={value}"
    return f"++{bare}={value}"


def _explain(error: Exception, overrides: list[str]) -> ConfigError:
    first_line = str(error).strip().splitlines()[0]
    return ConfigError(
        f"arguments {' '.join(overrides)!r}", rule=first_line.rstrip("."), fix="see --help for groups and keys"
    )
