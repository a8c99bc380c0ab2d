"""Sources of pictures, one file a kind."""

from mim_jax.data.sources.base import Picture, Source
from mim_jax.data.sources.opening import KINDS, open_source

__all__ = ["KINDS", "Picture", "Source", "open_source"]
