"""The options of the task `analyze`: config.job."""

import dataclasses

from mim_jax.analysis.attention_metrics import CLS, UNITS
from mim_jax.analysis.cka import FEATURES, FEWEST
from mim_jax.config.check import ConfigError, build, one_of
from mim_jax.config.schema import Config

ESTIMATES = ("minibatch", "biased", "none")


@dataclasses.dataclass(frozen=True)
class AnalysisOptions:
    """What is looked at, and how."""

    kinds: str = ""  # mim | supervised | other for each run, in order; empty = by its method
    step: int | None = None  # of every run's checkpoint; None = the last, and the run must be finished
    images: int = 256  # spread evenly over the test split
    batch: int = 32  # images at a time; rounded up so that devices and CKA's minibatches divide it
    units: str = "px"  # of distances: px (of the network's input) | patch | unit (of coordinates i / (n - 1))
    cls: str = "drop"  # keys that are CLS: drop | renorm (the others sum to 1); the tables hold both
    jensen_shannon: bool = False  # a second measure of diversity, bounded by log 2; triples the cost
    cka: str = "minibatch"  # minibatch (unbiased) | biased (over all images at once: pool or cls only) | none
    cka_features: str = (
        "flatten"  # of an image: flatten (all tokens, no CLS) | pool | cls | tokens (a row each)
    )
    cka_batch: int = 32  # images of a minibatch; with tokens take few: each brings all its tokens
    embedding: bool = False  # the tokens before the first block are CKA's layer 0
    pictures: int = 4  # images in the pictures of attention; 0 = none


def check_job(config: Config) -> AnalysisOptions:
    """The options of the task. Raises ConfigError."""
    options = build(AnalysisOptions, config.job, "config.job")
    if not config.runs.strip():
        raise ConfigError("config.runs names no run: pass --config.runs=DIRECTORY_A,DIRECTORY_B")
    for key, known in (("units", UNITS), ("cls", CLS), ("cka", ESTIMATES), ("cka_features", FEATURES)):
        one_of(f"config.job.{key}", getattr(options, key), known)
    for key, least in (("images", FEWEST), ("cka_batch", FEWEST), ("batch", 1), ("pictures", 0)):
        if getattr(options, key) < least:
            raise ConfigError(f"config.job.{key}={getattr(options, key)} must be at least {least}")
    if options.cka == "biased" and options.cka_features not in ("pool", "cls"):
        raise ConfigError(
            f"config.job.cka=biased keeps the features of all images, and {options.cka_features} are too many: take pool or cls"
        )
    return options
