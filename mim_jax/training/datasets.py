"""The dataset that a configuration names."""

from mim_jax.config.schema import Data
from mim_jax.data import Dataset, open_dataset


def open_split(data: Data, split: str, seed: int) -> Dataset:
    """A split of the dataset of a configuration's section `data`. Raises DataError."""
    return open_dataset(
        data.source,
        split,
        seed=seed,
        on_bad_image=data.on_bad_image,
        data_dir=data.data_dir,
        crops_per_picture=data.crops_per_picture,
    )
