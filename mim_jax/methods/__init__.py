"""The registry: a method's name in a configuration to its page."""

import dataclasses
from collections.abc import Callable
from typing import Any

from mim_jax.config.check import ConfigError, build, one_of
from mim_jax.config.schema import Config
from mim_jax.methods import amt, beyond_masking, classify, mae, mapet, mim, simmim
from mim_jax.methods.protocol import Features, Method, Phase, Picture

__all__ = ["METHODS", "Features", "Method", "Phase", "Picture", "build_method"]

METHODS: dict[str, tuple[type, Callable[[Config, Any], Method]]] = {
    "amt": (amt.AmtOptions, amt.build),
    "beyond_masking": (beyond_masking.BeyondMaskingOptions, beyond_masking.BeyondMasking),
    "classify": (classify.ClassifyOptions, classify.Classify),
    "mae": (mae.MaeOptions, mae.Mae),
    "mapet": (mapet.MapetOptions, mapet.build),
    "mim": (mim.MimOptions, mim.Mim),
    "simmim": (simmim.SimmimOptions, simmim.Simmim),
}
"""Name -> (dataclass of its options, what builds it)."""


def check_options(config: Config) -> Any:
    """The section `method` of a configuration as the method's own options; ConfigError where it is wrong."""
    section = dict(config.method)
    if "name" not in section:
        raise ConfigError(f"config.method.name is missing; it is one of {', '.join(METHODS)}")
    options, _ = METHODS[one_of("config.method.name", section.pop("name"), METHODS)]
    return build(options, section, "config.method")


def build_method(config: Config) -> Method:
    """The method of a resolved configuration."""
    options = check_options(config)  # first: it refuses a method that there is not
    return METHODS[config.method["name"]][1](config, options)


def complete_options(config: Config, num_classes: int = 0, multi_label: bool = False) -> Config:
    """The configuration with every option of its method written out.

    num_classes, multi_label: of the training images; taken where the method has the option and it is not set.

    Raises:
        ConfigError: another number of classes was set.
    """
    options = dataclasses.asdict(check_options(config))
    if "num_classes" in options:
        wanted = options["num_classes"]
        if wanted is not None and num_classes and wanted != num_classes:
            raise ConfigError(
                f"config.method.num_classes={wanted}, but {config.data.source} has {num_classes} classes: leave it empty"
            )
        options["num_classes"] = wanted or num_classes
    if "multi_label" in options and options["multi_label"] is None:
        options["multi_label"] = multi_label
    return dataclasses.replace(config, method={"name": config.method["name"], **options})
