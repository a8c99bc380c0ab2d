"""The report's picture for methods that predict token ids: tokens are drawn as their centroids."""

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.methods.protocol import Artefacts, Method, Outputs, Picture, View
from mim_jax.targets.pixels import denormalise, unpatchify


def token_picture(
    method: Method, view: View, outputs: Outputs, artefacts: Artefacts, *, order: jax.Array
) -> Picture | None:
    """Input, context, order, predicted and true tokens of each example; None where tokens have no pixels (a cache).

    Args:
        order: int [B, L]; 0 = context, else the place among the targets (from 1) or simply 1.
    """
    if "centroids" not in artefacts:
        return None
    data, grid = method.config.data, method.vit.grid
    patches, targets = view["patches"], view["targets"]

    def draw(values: jax.Array) -> np.ndarray:
        image = denormalise(unpatchify(values, grid), data.mean, data.std)
        return np.asarray(jnp.clip(jnp.round(255 * image), 0, 255).astype(jnp.uint8))

    def paint(ids: jax.Array) -> np.ndarray:
        filled = jax.vmap(lambda own, at, new: own.at[at].set(new))(
            patches, targets, artefacts["centroids"][ids]
        )
        return draw(filled)

    height, width = method.vit.image_size
    shade = np.asarray(order, np.float32) / max(1, int(jnp.max(order)))
    shade = np.where(
        np.asarray(order) == 0, 0.0, 0.25 + 0.75 * shade
    )  # context black, then dark to bright by place
    blocks = np.kron(shade.reshape(-1, *grid), np.ones((1, method.vit.patch, method.vit.patch)))
    ordered = np.repeat((255 * blocks.reshape(-1, height, width, 1)).astype(np.uint8), 3, axis=-1)
    hidden = jax.vmap(lambda own, at: own.at[at].set(0.0))(patches, targets)
    columns = {
        "input": draw(patches),
        "context (the rest grey)": draw(hidden),
        "order (context black, first target darkest)": ordered,
        "predicted tokens": paint(jnp.argmax(outputs["logits"], axis=-1)),
        "true tokens": paint(view["labels"]),
    }
    caption = "Held-out images. Target patches are drawn as the centroid of their token; context patches as they are."
    return Picture(columns, caption)
