"""A ViT with a classification head: fine-tuning and training from scratch (spec mapet.md 10, amt.md 1.6), probes (1.5)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.layers import Dense
from mim_jax.models.vit import ViT, ViTConfig

BN_EPS = 1e-6
BN_MOMENTUM = 0.1


class Classifier(nn.Module):
    """Mean of the patch tokens, then the final norm; or the norm's CLS token. Then a linear layer.

    The papers give mean pooling a norm of its own and drop the encoder's; here it is the encoder's, made afresh.
    """

    config: ViTConfig
    num_classes: int
    pool: str = "mean"  # mean | cls

    def setup(self) -> None:
        self.encoder = ViT(self.config)
        self.head = Dense(self.num_classes, dtype=self.config.dtype)

    def __call__(self, patches: jax.Array, drop_keys: jax.Array | None = None) -> jax.Array:
        """[B, L, p p 3] to logits [B, num_classes]."""
        rows = self.encoder.run(self.encoder.tokens(patches), drop_keys=drop_keys)[-1]
        pooled = jnp.mean(rows[:, self.config.prefix :], axis=1) if self.pool == "mean" else rows[:, 0]
        return self.head(self.encoder.final_norm(pooled))


class Probe(nn.Module):
    """A frozen encoder, batch normalisation without affine parameters, a linear layer."""

    config: ViTConfig
    num_classes: int

    def setup(self) -> None:
        self.encoder = ViT(self.config)
        self.head = Dense(self.num_classes)

    def classify(self, features: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        """Features [B, D], normalised by the statistics [D] given, to logits [B, num_classes]."""
        return self.head((features - mean) * jax.lax.rsqrt(variance + BN_EPS))

    def __call__(self, patches: jax.Array) -> jax.Array:
        """Visits every parameter (for initialisation)."""
        width = self.config.width
        return self.classify(self.encoder(patches)[:, 0], jnp.zeros(width), jnp.ones(width))


def running(old: jax.Array, new: jax.Array) -> jax.Array:
    """A running statistic after one more batch, as torch keeps it."""
    return (1.0 - BN_MOMENTUM) * old + BN_MOMENTUM * new
