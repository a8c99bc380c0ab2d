"""Sources of pictures, one file a kind."""

from mim_jax.data.datasets.base import Dataset, Picture
from mim_jax.data.datasets.opening import KINDS, open_dataset

__all__ = ["KINDS", "Dataset", "Picture", "open_dataset"]
