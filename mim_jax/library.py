"""A trained network in somebody else's program: its features, from the work directory alone.

run = mim_jax.load("runs/mapet-demo")
features = run.features(images)  # uint8 [B, H, W, 3] -> float32 [B, D]
"""

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mim_jax.config.schema import Config
from mim_jax.methods import Method
from mim_jax.models.vit import Params
from mim_jax.storage import parse_path
from mim_jax.training.pretrained import read_run
from mim_jax.training.run_directory import read_config

POOLS = ("mean", "cls")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's network as it was after `step` updates. `params`: a nested dict of arrays, where `load` was told to put
    them; `config`: the resolved configuration; `method`: built for it."""

    config: Config
    method: Method
    params: Params
    step: int

    def __repr__(self) -> str:
        c, count = self.config, sum(leaf.size for leaf in jax.tree.leaves(self.params))
        height, width = self.method.net.image_size
        return (
            f"Run of {c.method['name']} on {c.data.source}, after {self.step:,} updates\n"
            f"  {self.method.net.summary}, patch {self.method.net.patch}, images {height} x {width}, {count:,} parameters\n"
            f"  features(images): uint8 [B, {height}, {width}, 3] to float32 [B, {self.method.net.features}]"
        )

    def features(self, images: npt.ArrayLike | jax.Array, layer: int = -1, pool: str = "mean") -> jax.Array:
        """What the encoder makes of whole images, nothing hidden, in evaluation mode.

        Args:
            images: [B, H, W, 3] or one [H, W, 3], numpy or jax, RGB; uint8 in 0..255 or floating point in [0, 1]. Neither
                resized nor cropped here: best of the size that the model was trained at (`config.model.image_size`), or any
                other that its patch divides; then positions are resized. One batch is one computation: give thousands of
                images in parts, all of one size (each new size is compiled).
            layer: -1 = after the encoder's final norm; 0 and up = output of that block.
            pool: mean (of the patch tokens) | cls (the CLS token).
        Returns:
            float32 [B, D], or [D] for one image.
        Raises:
            ValueError: in one sentence.
        """
        net = self.method.net
        if not (layer == -1 or 0 <= layer < net.depth):
            raise ValueError(
                f"layer must be -1 (after the final norm) or a block in 0..{net.depth - 1}, got {layer}"
            )
        if pool not in POOLS or (pool == "cls" and not net.prefix):
            known = "mean or cls" if net.prefix else "mean (this model has no CLS token)"
            raise ValueError(f"pool must be {known}, got {pool!r}")
        batch = _checked(images, net.patch)
        single = batch.ndim == 3
        made = self._encode(self.params, batch[None] if single else batch, layer=layer, pool=pool)
        return made[0] if single else made

    @functools.cached_property
    def _encode(self) -> Any:
        def encode(params: Params, images: jax.Array, *, layer: int, pool: str) -> jax.Array:
            return self.method.encode(params, images).pooled(layer, pool).astype(jnp.float32)

        return jax.jit(encode, static_argnames=("layer", "pool"))


def load(
    workdir: str | os.PathLike[str],
    step: int | None = None,
    *,
    ema: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> Run:
    """The network of a run, from its directory: config.json and one checkpoint, of which only the parameters are read.

    Args:
        workdir: a run's directory.
        step: of the checkpoint; None = the newest good one.
        ema: the moving average of the parameters instead of the parameters themselves.
        sharding: where every parameter goes, e.g. a replicated NamedSharding; None = the first local device.
    Raises:
        ConfigError: there is no run, or its configuration cannot be used here.
        CheckpointError: there is no such checkpoint, or it is damaged.
        ValueError: ema=True, and the run keeps no average.
    """
    directory = parse_path(workdir, "workdir")
    if ema and not read_config(directory).optim.ema:
        raise ValueError(
            f"{directory} keeps no moving average of its parameters (config.optim.ema=0): load it with ema=False"
        )
    return Run(*read_run(directory, step, ema=ema, sharding=sharding))


def _checked(images: npt.ArrayLike | jax.Array, patch: int) -> jax.Array:
    """The images as uint8 or float32, or a ValueError that says what is wrong."""
    array = images if isinstance(images, jax.Array) else np.asarray(images)
    if (
        array.ndim not in (3, 4)
        or array.shape[-1] != 3
        or 0 in array.shape
        or any(side % patch for side in array.shape[-3:-1])
    ):
        raise ValueError(
            f"images must have the shape [B, H, W, 3] or [H, W, 3] with H and W multiples of the patch of {patch} px, got"
            f" {list(array.shape)}"
        )
    if array.dtype == np.uint8:
        return jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 in 0..255 or floating point in [0, 1], got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # not a number fails here, too
        raise ValueError(f"floating-point images must lie in [0, 1], got values from {low:g} to {high:g}")
    return jnp.asarray(array, jnp.float32)
