"""The report's images for AMT: the map over the image, what is masked, thrown and visible, and the prediction."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from mim_jax.methods.method import ImageGrid, View, ViTMethod
from mim_jax.methods.pixel_grid import GREY, by_visible_statistics, caption, draw, put

THROWN = (150, 30, 30)
"""Colour of thrown patches, RGB."""


def amt_grid(method: ViTMethod, view: View, predicted: jax.Array, *, normalised: bool) -> ImageGrid:
    """Original, map, visible, masked and thrown patches, prediction, for predictions [B, M, p p 3]."""
    patches, hidden, visible = view["patches"], view["hidden"], view["visible"]
    if normalised:
        predicted = by_visible_statistics(predicted, patches, visible)
    present = np.zeros(patches.shape[:2])
    np.put_along_axis(present, np.concatenate([visible, hidden], axis=1), 1.0, axis=1)
    gone = enlarge(present.reshape(-1, *method.vit.grid), method.vit.patch) == 0

    def without_thrown(values: jax.Array) -> np.ndarray:
        image = draw(method, put(patches, hidden, values)).copy()
        image[gone] = THROWN
        return image

    original = draw(method, patches)
    maps = np.asarray(view["weights"]).reshape(-1, *method.vit.grid)
    columns = {
        "original": original,
        "attention weights": over(original, maps / maps.max(), method.vit.patch),
        "visible, masked (grey), thrown (red)": without_thrown(jnp.full_like(predicted, GREY)),
        "composition": without_thrown(predicted),
    }
    return ImageGrid(
        columns,
        caption(columns, normalised)
        + " Weights are what CLS of the trained encoder attends to in the whole image (or the control's):"
        " patches of high weight are masked first, the next are thrown.",
    )


def enlarge(maps: np.ndarray, patch: int) -> np.ndarray:
    """[n, rows, columns] to [n, H, W]."""
    return np.kron(maps, np.ones((1, patch, patch)))


def over(images: np.ndarray, maps: np.ndarray, patch: int) -> np.ndarray:
    """Maps [n, rows, columns] in [0, 1] in colour, half over the images in grey; uint8 [n, H, W, 3]."""
    colour = matplotlib.colormaps["inferno"](enlarge(maps, patch))[..., :3]
    grey = images.mean(axis=-1, keepdims=True) / 255.0
    return np.round(255 * (0.6 * colour + 0.4 * grey)).astype(np.uint8)
