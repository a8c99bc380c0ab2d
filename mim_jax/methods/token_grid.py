"""The report's images for methods that predict token ids: tokens are drawn as their centroids."""

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.methods.method import Artefacts, ImageGrid, Outputs, View, ViTMethod
from mim_jax.targets.pixels import denormalise, unpatchify


def token_grid(
    method: ViTMethod, view: View, outputs: Outputs, artefacts: Artefacts, *, order: jax.Array | None = None
) -> ImageGrid | None:
    """Original, what is seen, order, predicted and true tokens of each example; None where tokens have no pixels (a cache).

    Args:
        order: int [B, L], of methods that permute: 0 = context, else the place among the targets (from 1). Others, whose
            targets have no order, have no such column.
    """
    if "centroids" not in artefacts:
        return None
    data, grid = method.preprocessing, method.vit.grid
    patches, targets = view["patches"], view["targets"]

    def draw(values: jax.Array) -> np.ndarray:
        image = denormalise(unpatchify(values, grid), data.mean, data.std)
        return np.asarray(jnp.clip(jnp.round(255 * image), 0, 255).astype(jnp.uint8))

    def paint(ids: jax.Array) -> np.ndarray:
        filled = jax.vmap(lambda own, at, new: own.at[at].set(new))(
            patches, targets, artefacts["centroids"][ids]
        )
        return draw(filled)

    hidden = jax.vmap(lambda own, at: own.at[at].set(0.0))(patches, targets)
    seen = "masked input" if order is None else "context"
    columns = {"original": draw(patches), seen: draw(hidden)}
    grey = "masked patches are grey" if order is None else "all but the context is grey"
    caption = f"Held-out images; {grey}."
    if order is not None:
        columns["order"] = _order(method, np.asarray(order))
        caption += " Order: black is context, the first target dark, the last one bright."
    columns["predicted tokens"] = paint(jnp.argmax(outputs["logits"], axis=-1))
    columns["true tokens"] = paint(view["labels"])
    return ImageGrid(columns, caption + " Target patches are drawn as the centroid of their token.")


def _order(method: ViTMethod, order: np.ndarray) -> np.ndarray:
    """The places [B, L] in grey, uint8 [B, H, W, 3]."""
    grid, (height, width) = method.vit.grid, method.vit.image_size
    shade = np.where(order == 0, 0.0, 0.25 + 0.75 * order / max(1, int(order.max())))
    blocks = np.kron(shade.reshape(-1, *grid), np.ones((1, method.vit.patch, method.vit.patch)))
    return np.repeat((255 * blocks.reshape(-1, height, width, 1)).astype(np.uint8), 3, axis=-1)
