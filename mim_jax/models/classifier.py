"""A ViT with a classification head: fine-tuning, and training from scratch (spec mapet.md 10, amt.md 1.6)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.layers import Dense, LayerNorm
from mim_jax.models.vit import ViT, ViTConfig


class Classifier(nn.Module):
    """Mean of the patch tokens, a fresh norm and a linear layer; or the final norm's CLS token and a linear layer."""

    config: ViTConfig
    num_classes: int
    pool: str = "mean"  # mean | cls

    @nn.compact
    def __call__(self, patches: jax.Array, drop_keys: jax.Array | None = None) -> jax.Array:
        """[B, L, p p 3] to logits [B, num_classes]."""
        c = self.config
        encoder = ViT(c, name="encoder")
        rows = encoder.run(encoder.tokens(patches), drop_keys=drop_keys)[-1]
        if self.pool == "mean":
            # The pre-trained final norm is dropped: pooling comes before the norm.
            pooled = LayerNorm(c.norm_eps, c.dtype, name="fc_norm")(jnp.mean(rows[:, c.prefix :], axis=1))
        elif self.pool == "cls":
            pooled = encoder.final_norm(rows)[:, 0]
        else:
            raise ValueError(f"pool is mean or cls, not {self.pool!r}")
        return Dense(self.num_classes, dtype=c.dtype, name="head")(pooled)
