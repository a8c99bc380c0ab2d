"""Images for training: datasets, their order, decoding, views, batches, token caches. Imports nothing of mim_jax but
storage, reading and progress."""

from mim_jax.data.crop import crop_and_resize, make_crop
from mim_jax.data.datasets import Dataset, open_dataset
from mim_jax.data.datasets.subset import Subset, even_numbers, evenly_spaced, over_classes
from mim_jax.data.errors import BadImageError, DataError
from mim_jax.data.examples import ClassLabel, ClassLabels, Example
from mim_jax.data.loader import Loader, evaluation_batches
from mim_jax.data.order import locate
from mim_jax.data.placement import place
from mim_jax.data.tokens_cache import TokenCache, TokenWriter, write_token_cache
from mim_jax.data.views import ClassLabelsView, ClassLabelView, ColumnView, ImageView, SecondSizeView, View
from mim_jax.data.views.base import Batch

__all__ = [
    "BadImageError",
    "Batch",
    "ClassLabel",
    "ClassLabelView",
    "ClassLabels",
    "ClassLabelsView",
    "ColumnView",
    "DataError",
    "Dataset",
    "Example",
    "ImageView",
    "Loader",
    "SecondSizeView",
    "Subset",
    "TokenCache",
    "TokenWriter",
    "View",
    "crop_and_resize",
    "evaluation_batches",
    "even_numbers",
    "evenly_spaced",
    "locate",
    "make_crop",
    "open_dataset",
    "over_classes",
    "place",
    "write_token_cache",
]
