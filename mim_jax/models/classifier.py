"""An encoder with a classification head: fine-tuning and training from scratch (docs/papers/mapet.md 10, docs/papers/amt.md 1.6), probes (docs/papers/amt.md 1.5)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mim_jax.models.layers import Dense
from mim_jax.models.swin import SwinConfig
from mim_jax.models.vit import ViTConfig

BN_EPS = 1e-6
BN_MOMENTUM = 0.1


class Classifier(nn.Module):
    """Mean of the patch tokens, then the final norm; or the norm's CLS token. Then a linear layer. A Swin norms first.

    The papers give a ViT's mean pooling a norm of its own and drop the encoder's; here it is the encoder's, drawn anew.
    """

    config: ViTConfig | SwinConfig
    num_classes: int
    pool: str = "mean"  # mean | cls

    def setup(self) -> None:
        self.encoder = self.config.module
        self.head = Dense(self.num_classes, dtype=self.config.dtype)

    def __call__(
        self, patches: Float[Array, "batch patches patch_dim"], drop_keys: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch {self.num_classes}"]:
        """Logits."""
        tokens = self.encoder.apply_blocks(self.encoder.input_tokens(patches), drop_keys=drop_keys)[-1]
        return self.head(self.encoder.pooled(tokens, self.pool))


class Probe(nn.Module):
    """A frozen encoder, batch normalisation without affine parameters, a linear layer."""

    config: ViTConfig | SwinConfig
    num_classes: int
    width: int  # of the features

    def setup(self) -> None:
        self.encoder = self.config.module
        self.head = Dense(self.num_classes)

    def classify(
        self, features: Float[Array, "batch dim"], mean: Float[Array, " dim"], variance: Float[Array, " dim"]
    ) -> Float[Array, "batch {self.num_classes}"]:
        """Logits of features that are normalised by the statistics given."""
        return self.head((features - mean) * jax.lax.rsqrt(variance + BN_EPS))

    def __call__(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> Float[Array, "batch {self.num_classes}"]:
        """Visits every parameter (for initialisation)."""
        self.encoder(patches)
        features = jnp.zeros((len(patches), self.width))
        return self.classify(features, jnp.zeros(self.width), jnp.ones(self.width))


def running(old: Float[Array, " dim"], new: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """A running statistic after one more batch, as torch keeps it."""
    return (1.0 - BN_MOMENTUM) * old + BN_MOMENTUM * new
