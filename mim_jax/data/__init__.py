"""Images for training: sources, their order, decoding, cropping, batches, token caches. Imports nothing else
of mim_jax."""

from mim_jax.data.crop import Box, box_for, crop_and_resize, render
from mim_jax.data.datasets import Dataset, Picture, open_dataset
from mim_jax.data.datasets.sample import EvenSample, Subset, over_classes, spread
from mim_jax.data.errors import BadImageError, DataError
from mim_jax.data.loader import Loader, evaluation_batches
from mim_jax.data.order import locate
from mim_jax.data.placement import place
from mim_jax.data.spec import Batch, InputSpec
from mim_jax.data.tokens_cache import TokenCache
from mim_jax.data.tokens_writer import TokenWriter, write_token_cache

__all__ = [
    "BadImageError",
    "Batch",
    "Box",
    "DataError",
    "Dataset",
    "EvenSample",
    "InputSpec",
    "Loader",
    "Picture",
    "Subset",
    "TokenCache",
    "TokenWriter",
    "box_for",
    "crop_and_resize",
    "evaluation_batches",
    "locate",
    "open_dataset",
    "over_classes",
    "place",
    "render",
    "spread",
    "write_token_cache",
]
