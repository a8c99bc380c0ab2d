"""A Swin, one MASK vector and one linear layer: SimMIM on Swin (docs/papers/dark_secrets.md 1.4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.layers import Dense, broadcast_parameter, uninitialised
from mim_jax.models.masked_predictor import take_rows
from mim_jax.models.swin import Swin, SwinConfig


class SwinPredictor(nn.Module):
    """Predicts what hidden cells of the last stage stand for; parameters are named as `MaskedPredictor`'s.

    outputs: values per cell; None = its pixels, stride * stride * 3 in (row, column, channel) order, so that predictions
    are patches of `patchify(images, stride)`. The official order is (channel, row, column); `interop.swin` converts.

    Raises:
        ValueError: at the first use, if the last stage's cells do not tile the image.
    """

    config: SwinConfig
    outputs: int | None = None

    def setup(self) -> None:
        c = self.config
        if (c.cells[0] * c.stride, c.cells[1] * c.stride) != tuple(c.image_size):
            raise ValueError(
                f"images of {c.image_size[0]}x{c.image_size[1]} px are not tiled by the {c.stride} px cells of this "
                "Swin's last stage; take sides that are multiples of them"
            )
        self.encoder = Swin(c)
        self.mask_token = self.param("mask_token", uninitialised, (1, 1, c.width))
        self.head = Dense(self.outputs or 3 * c.stride**2, dtype=c.dtype)

    def masked(
        self, patches: jax.Array, mask: jax.Array, targets: jax.Array, *, drop_keys: jax.Array | None = None
    ) -> jax.Array:
        """What is predicted for cells of the last stage while MASK stands for the hidden patches.

        Args:
            patches: [B, L, p p 3].
            mask: bool [B, L], True = hidden; MASK replaces these after the patch norm.
            targets: int32 [B, M], indices of cells of the last stage, raster order.
            drop_keys: typed keys [B] for drop path; None in evaluation.
        Returns:
            [B, M, outputs], in the order of `targets`.
        """
        embedded = self.encoder.embed(patches)
        hidden = broadcast_parameter(self.mask_token, embedded.shape, embedded.dtype)
        embedded = jnp.where(mask[..., None], hidden, embedded)
        out = self.encoder.run(embedded, drop_keys=drop_keys)[-1]
        return self.head(self.encoder.final_norm(take_rows(out, targets)))

    def __call__(self, patches: jax.Array) -> jax.Array:
        """Visits every parameter (for initialisation): nothing hidden, every cell predicted."""
        rows, columns = self.config.cells
        nothing = jnp.zeros(patches.shape[:2], bool)
        everything = jnp.broadcast_to(jnp.arange(rows * columns), (len(patches), rows * columns))
        return self.masked(patches, nothing, everything)
