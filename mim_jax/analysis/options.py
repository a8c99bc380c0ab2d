"""The options of the task `analyze`: config.job."""

import dataclasses
from typing import Annotated

from mim_jax.analysis.attention_metrics import CLS, UNITS
from mim_jax.analysis.cka import FEATURES, FEWEST
from mim_jax.config.check import ConfigError, build
from mim_jax.config.kinds import MOST, Count, CountOrZero, Range, Text, words
from mim_jax.config.schema import Config

ESTIMATES = ("minibatch", "biased", "none")


@dataclasses.dataclass(frozen=True)
class AnalysisOptions:
    """What is looked at, and how."""

    kinds: Text = ""  # mim | supervised | other for each run, in order; empty = by its method
    step: CountOrZero | None = (
        None  # of every run's checkpoint; None = the last, and the run must be finished
    )
    images: Annotated[int, Range(FEWEST, MOST)] = 256  # spread evenly over the test split
    batch: Count = 32  # images at a time; rounded up so that devices and CKA's minibatches divide it
    units: Annotated[str, words(*UNITS)] = (
        "px"  # of distances: px (of the network's input) | patch | unit (of coordinates i / (n - 1))
    )
    cls: Annotated[str, words(*CLS)] = (
        "drop"  # keys that are CLS: drop | renorm (the others sum to 1); the tables hold both
    )
    jensen_shannon: bool = False  # a second measure of diversity, bounded by log 2; triples the cost
    cka: Annotated[str, words(*ESTIMATES)] = (
        "minibatch"  # minibatch (unbiased) | biased (over all images at once: pool or cls only) | none
    )
    cka_features: Annotated[str, words(*FEATURES)] = (
        "flatten"  # of an image: flatten (all tokens, no CLS) | pool | cls | tokens (a row each)
    )
    cka_batch: Annotated[int, Range(FEWEST, MOST)] = (
        32  # images of a minibatch; with tokens take few: each brings all its tokens
    )
    embedding: bool = False  # the tokens before the first block are CKA's layer 0
    pictures: CountOrZero = 4  # images in the pictures of attention; 0 = none


def check_job(config: Config) -> AnalysisOptions:
    """The options of the task. Raises ConfigError."""
    options = build(AnalysisOptions, config.job, "config.job")
    if not config.runs.strip():
        raise ConfigError("config.runs names no run: pass --config.runs=DIRECTORY_A,DIRECTORY_B")
    if options.cka == "biased" and options.cka_features not in ("pool", "cls"):
        raise ConfigError(
            f"config.job.cka=biased keeps the features of all images, and {options.cka_features} are too many: take pool or cls"
        )
    return options
