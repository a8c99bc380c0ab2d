"""VQ-KD, the tokenizer of BEiT v2, without its decoder (docs/papers/mapet.md 8.2)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from mim_jax.models.layers import Dense, uninitialised
from mim_jax.models.vit import ViT, ViTConfig
from mim_jax.targets.tokens import nearest_centroid

ENCODER = ViTConfig(width=768, depth=12, heads=12, qkv_bias="qv")
NORM_FLOOR = 1e-12
"""The smallest length a code is divided by, as torch's `normalize` has it."""


@dataclasses.dataclass(frozen=True)
class VqkdConfig:
    """The defaults are the released vqkd_encoder_base_decoder_3x768x12_clip."""

    encoder: ViTConfig = ENCODER
    code_width: int = 32
    vocabulary: int = 8192

    @property
    def image_size(self) -> tuple[int, int]:
        return self.encoder.image_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.encoder.grid


def map_pixels(images: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """[0, 1] to [-1, 1], what the encoder was trained on."""
    return 2.0 * images - 1.0


class Vqkd(nn.Module):
    """ViT, two linear layers with a tanh between them, and a codebook of unit vectors."""

    config: VqkdConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = ViT(c.encoder)
        self.head_in, self.head_out = Dense(c.encoder.width), Dense(c.code_width)
        self.codebook = self.param("codebook", uninitialised, (c.vocabulary, c.code_width))

    def codes(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> Float[Array, "batch patches {self.config.code_width}"]:
        """Patches of images as `map_pixels` gives them to unit vectors."""
        tokens = self.encoder(patches)[:, self.config.encoder.prefix :]
        # The head is in float32 whatever the encoder computes in, as in the official code.
        tokens = tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32))
        codes = self.head_out(jnp.tanh(self.head_in(tokens)))
        return codes / jnp.maximum(jnp.linalg.norm(codes, axis=-1, keepdims=True), NORM_FLOOR)

    def ids(self, patches: Float[Array, "batch patches patch_dim"]) -> Int32[Array, "batch patches"]:
        """The nearest code of every patch, row-major; patches as above."""
        return nearest_centroid(self.codes(patches), self.codebook)

    def __call__(self, patches: Float[Array, "batch patches patch_dim"]) -> Int32[Array, "batch patches"]:
        """The same as `ids`: visits every parameter."""
        return self.ids(patches)
