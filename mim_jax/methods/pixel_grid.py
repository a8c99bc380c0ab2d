"""The report's images for methods that predict pixels. Honest: nothing of the target is used to draw a prediction."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.methods.method import ImageGrid, Method, View
from mim_jax.targets.pixels import denormalise, unpatchify

GREY = 0.0
"""Hidden patches are drawn as the data set's mean colour."""

EXPLAINED = {
    "masked input": "masked patches are grey",
    "composition": "the composition is the prediction where the input was masked, and the input elsewhere",
}
"""Columns that their names do not explain."""


def pixel_grid(method: Method, view: View, predicted: jax.Array, *, normalised: bool) -> ImageGrid:
    """Input, prediction, composition and original, for predictions of the hidden patches [B, M, p p 3]."""
    patches, hidden = view["patches"], view["hidden"]
    if normalised:
        predicted = by_visible_statistics(predicted, patches, view["visible"])
    nothing = jnp.full_like(patches, GREY)
    columns = {
        "masked input": draw(method, put(patches, hidden, jnp.full_like(predicted, GREY))),
        "prediction": draw(method, put(nothing, hidden, predicted)),
        "composition": draw(method, put(patches, hidden, predicted)),
        "original": draw(method, patches),
    }
    return ImageGrid(columns, caption(columns, normalised))


def caption(columns: Iterable[str], normalised: bool) -> str:
    """What the pictures show, and what each column that needs it is."""
    text = "Held-out images" + "".join(f"; {EXPLAINED[name]}" for name in columns if name in EXPLAINED) + "."
    if normalised:
        text += " Predictions are relative to each patch; they are drawn with mean and spread of the visible pixels of the image, not of the target."
    return text


def by_visible_statistics(predicted: jax.Array, patches: jax.Array, visible: jax.Array) -> jax.Array:
    """Patch-normalised predictions on the scale of what the network saw of each image (mean and spread a channel)."""
    seen = jnp.take_along_axis(patches, visible[..., None], axis=1).reshape(len(patches), -1, 3)
    repeat = predicted.shape[-1] // 3
    mean, spread = (jnp.tile(x, repeat)[:, None] for x in (seen.mean(axis=1), seen.std(axis=1)))
    return predicted * spread + mean


def put(patches: jax.Array, index: jax.Array, new: jax.Array) -> jax.Array:
    """Patches [B, L, d] with those at `index` [B, M] replaced by `new` [B, M, d]."""
    return jax.vmap(lambda own, at, values: own.at[at].set(values))(patches, index, new.astype(patches.dtype))


def draw(method: Method, patches: Any) -> np.ndarray:
    """Normalised patches [B, L, p p 3], of any side p that divides the image, as uint8 images."""
    side = round((patches.shape[-1] / 3) ** 0.5)
    height, width = method.net.image_size
    return draw_images(method, unpatchify(jnp.asarray(patches), (height // side, width // side)))


def draw_images(method: Method, images: jax.Array) -> np.ndarray:
    """Normalised images [B, H, W, 3] as uint8."""
    image = denormalise(images, method.preprocessing.mean, method.preprocessing.std)
    return np.asarray(jnp.clip(jnp.round(255 * image), 0, 255).astype(jnp.uint8))
