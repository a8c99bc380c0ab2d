"""The registry: a method's name in a configuration to its page."""

import dataclasses
from collections.abc import Callable
from typing import Any

from mim_jax.config.check import ConfigError, build, one_of
from mim_jax.config.schema import Config
from mim_jax.data import Dataset
from mim_jax.methods import amt, beyond_masking, classify, mae, mapet, mim, simmim
from mim_jax.methods.method import Encoder, Features, ImageGrid, Method, Phase, Variables
from mim_jax.methods.networks import encoder_config
from mim_jax.methods.preprocessing import Preprocessing

__all__ = [
    "METHODS",
    "Features",
    "ImageGrid",
    "Method",
    "Phase",
    "Variables",
    "build_method",
    "complete_options",
    "completion_lines",
    "register_method",
]

METHODS: dict[str, tuple[type, Callable[[Encoder, Any, Preprocessing], Method]]] = {
    "amt": (amt.AmtOptions, amt.build),
    "beyond_masking": (beyond_masking.BeyondMaskingOptions, beyond_masking.BeyondMasking),
    "classify": (classify.ClassifyOptions, classify.Classify),
    "mae": (mae.MaeOptions, mae.Mae),
    "mapet": (mapet.MapetOptions, mapet.build),
    "mim": (mim.MimOptions, mim.Mim),
    "simmim": (simmim.SimmimOptions, simmim.Simmim),
}
"""Name -> (dataclass of its options, what builds it from an encoder, options and preprocessing)."""
SHIPPED = frozenset(METHODS)


def register_method(name: str, options: type, build: Callable[[Encoder, Any, Preprocessing], Method]) -> None:
    """Makes `config.method.name=name` a method of yours; call it where your configuration file is loaded.

    To load a finished run of it elsewhere (`mim_jax.load`), import the page that calls this first.
    """
    if name in SHIPPED:
        raise ValueError(f"mim_jax has a method {name} of its own")
    METHODS[name] = (options, build)


def check_options(config: Config) -> Any:
    """The section `method` of a configuration as the method's own options; ConfigError where it is wrong."""
    section = dict(config.method)
    if "name" not in section:
        raise ConfigError(f"config.method.name is missing; it is one of {', '.join(METHODS)}")
    options, _ = METHODS[one_of("config.method.name", section.pop("name"), METHODS)]
    return build(options, section, "config.method")


def build_method(config: Config) -> Method:
    """The method of a resolved configuration whose options are completed."""
    options = check_options(config)  # first: it refuses a method that there is not
    make = METHODS[config.method["name"]][1]
    return make(encoder_config(config), options, Preprocessing.from_config(config))


def completion_lines(asked: Config, completed: Config) -> list[str]:
    """What `complete_options` filled in or changed, one line per option."""
    before, after = dataclasses.asdict(check_options(asked)), completed.method
    return [
        f"method.{name}={after[name]}" + (f", for {old} does not fit this run" if old is not None else "")
        for name, old in before.items()
        if after[name] != old
    ]


def complete_options(config: Config, dataset: Dataset | None = None) -> Config:
    """The configuration with every option of its method written out.

    Options that follow from the rest of the run (AMT's epochs) or from the training images (the classes) are filled in by
    the options' own `completed(config, dataset)`, where they have it.

    Raises:
        ConfigError: they contradict what was set.
    """
    options = check_options(config)
    if completed := getattr(options, "completed", None):
        options = completed(config, dataset)
    return dataclasses.replace(config, method={"name": config.method["name"], **dataclasses.asdict(options)})
