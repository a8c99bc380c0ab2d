"""Datasets, one file per kind."""

from mim_jax.data.datasets.base import Dataset
from mim_jax.data.datasets.opening import FORMS, OpenArguments, open_dataset, register_dataset

__all__ = ["FORMS", "Dataset", "OpenArguments", "open_dataset", "register_dataset"]
