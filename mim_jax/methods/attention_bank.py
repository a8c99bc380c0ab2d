"""AMT's bank: one attention map per training image, refreshed between epochs, and the choice of patches by it."""

import dataclasses
from typing import Annotated, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mim_jax.config.check import ConfigError
from mim_jax.config.kinds import Count, CountOrZero, words
from mim_jax.config.schema import Config, resolved
from mim_jax.corruptions.attention_driven import (
    crop_map,
    normalise_attention,
    official_corner,
)
from mim_jax.data import Dataset, ImageView
from mim_jax.data.crop import Squash
from mim_jax.methods.method import Artefacts, Batch, Draws, Refresh, ViTMethod, fold, same_row
from mim_jax.models.vit import Params

NAME = "attention"
TENTH = 0.1
"""Of the run: the release starts after 40 of its 400 epochs, and looks again every 40."""
CODES = {"float32": 1.0, "float16": 1.0, "uint8": 255.0}
"""Types of the bank, and what a weight of 1 is in them."""


@dataclasses.dataclass(frozen=True)
class BankOptions:
    # The last epoch (from 0) of random masking; the first refresh follows it. None, or so late that no epoch would be left = a
    # tenth of the run.
    start: CountOrZero | None = None
    interval: Count | None = None  # epochs between refreshes; None = a tenth of the run
    mapping: Annotated[str, words("aligned", "official_corner")] = (
        "aligned"  # aligned | official_corner: the map's corner whatever the crop, as the release has it
    )
    control: Annotated[str, words("none", "random_throw", "shuffled_bank")] = (
        "none"  # none | random_throw (all weights 1) | shuffled_bank (every image has another one's map)
    )
    bank: Annotated[str, words("host", "device")] = "host"  # host | device: where the maps lie
    bank_dtype: Annotated[str, words(*CODES)] = "float32"  # float32 | float16 | uint8

    def completed(self, config: Config, dataset: Dataset | None) -> Self:
        """With start and interval; ConfigError where the run is too short for either."""
        epochs = config.schedule.epochs
        if epochs <= 1:
            raise ConfigError(
                f"config.schedule.epochs={epochs:g} leaves attention no epoch to drive, for it takes one to see every image: train"
                " longer"
            )
        tenth = int(epochs * TENTH)
        late = self.start is None or self.start + 1 >= epochs
        return dataclasses.replace(
            self,
            start=tenth if late else self.start,
            interval=max(1, tenth) if self.interval is None else self.interval,
        )


class AttentionBank:
    """When the maps of all training images are looked at again, and the weights of a batch's patches."""

    def __init__(self, method: ViTMethod, options: BankOptions) -> None:
        self.method, self.options = method, options
        self.start, self.interval = resolved(options.start), resolved(options.interval)

    @property
    def first_epoch(self) -> int:
        """The first that attention drives: random masking runs up to and with epoch `start` (docs/papers/amt.md 3.2)."""
        return self.start + 1

    @property
    def refreshes(self) -> tuple[Refresh, ...]:
        """The one of the maps; random_throw needs none."""
        o = self.options
        if o.control == "random_throw":
            return ()
        return (
            Refresh(
                name=NAME,
                due=self.due,
                view=ImageView(self.method.net.image_size, Squash(), resample="bilinear"),
                compute=self.maps,
                shape=self.method.vit.grid,
                dtype=o.bank_dtype,
                initial=CODES[o.bank_dtype],
                on_device=o.bank == "device",
                row_of=permuted if o.control == "shuffled_bank" else same_row,
            ),
        )

    def due(self, epoch: int) -> bool:
        """After epochs start, start + interval, ... (docs/papers/amt.md 3.2); never after the last, for nothing follows it."""
        return epoch >= self.start and (epoch - self.start) % self.interval == 0

    def maps(self, params: Params, batch: Batch) -> jax.Array:
        """Maps of whole images as the bank stores them, [B, rows, columns]."""
        maps = attention_maps(self.method, params, batch["image"])
        code = CODES[self.options.bank_dtype]
        return (jnp.round(code * maps) if code != 1.0 else maps).astype(self.options.bank_dtype)

    def weights(self, batch: Batch, artefacts: Artefacts) -> jax.Array:
        """Weights of the patches of each crop, float32 [B, L]."""
        if self.options.control == "random_throw":
            return jnp.ones((len(batch["index"]), self.method.vit.num_patches), jnp.float32)
        stored = batch[NAME] if NAME in batch else artefacts[NAME][batch["index"]]
        maps = stored.astype(jnp.float32) / CODES[stored.dtype.name]
        crop = {"aligned": crop_map, "official_corner": official_corner}[self.options.mapping]
        flips = batch.get("flip", jnp.zeros(len(maps), bool))
        return jax.vmap(lambda a, box, flip: crop(a, box, flip, self.method.vit.grid))(
            maps, batch["box"], flips
        )

    def draws(self, keys: jax.Array, length: int) -> Draws:
        """`noise` [B, length], Gumbel: added to the logarithm of the weights, it makes the order a weighted draw."""
        return {"noise": jax.vmap(lambda key: jax.random.gumbel(key, (length,)))(fold(keys, 3))}


def attention_maps(method: ViTMethod, params: Params, images: jax.Array) -> jax.Array:
    """AMT's maps of whole images [B, H, W, 3], float32 [B, rows, columns] in [0, 1] (docs/papers/amt.md 3.1)."""
    rows = method.apply(params, method.patches(images), method=_attention_row)
    return normalise_attention(rows[..., method.vit.prefix :]).reshape(-1, *method.vit.grid)


def permuted(index: npt.NDArray[np.int32], num_examples: int, seed: int) -> npt.NDArray[np.int32]:
    """Another image's row for every image: a fixed random permutation of all."""
    return np.random.Generator(np.random.Philox(seed)).permutation(num_examples).astype(np.int32)[index]


def _attention_row(module: object, patches: jax.Array) -> jax.Array:
    row: jax.Array = module.encoder.attention_row(patches)  # type: ignore[attr-defined]
    return row
