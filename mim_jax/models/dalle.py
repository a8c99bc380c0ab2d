"""The encoder of DALL-E's discrete VAE: BEiT's tokenizer (docs/papers/mapet.md 8.3)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

GROUPS = 4


@dataclasses.dataclass(frozen=True)
class DalleConfig:
    """The defaults are OpenAI's weights. image_size: (height, width) in pixels; hidden: channels of the first group."""

    image_size: tuple[int, int] = (112, 112)
    hidden: int = 256
    vocabulary: int = 8192
    blocks: int = 2  # in each of the four groups
    dtype: DTypeLike | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of ids: three halvings, rounded down."""
        return self.image_size[0] // 8, self.image_size[1] // 8


def map_pixels(images: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """[0, 1] to [0.1, 0.9], what the encoder was trained on."""
    return 0.8 * images + 0.1


class ResidualBlock(nn.Module):
    """x + gain * (four ReLUs, each with a convolution); x goes through a 1x1 convolution where its channels change."""

    features: int
    gain: float
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch rows columns channels"]
    ) -> Float[Array, "batch rows columns {self.features}"]:
        branch = x
        narrow = self.features // 4
        for index, (features, side) in enumerate(
            ((narrow, 3), (narrow, 3), (narrow, 3), (self.features, 1)), start=1
        ):
            branch = nn.relu(branch)
            branch = nn.Conv(features, (side, side), dtype=self.dtype, name=f"conv_{index}")(branch)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="id_path")(x)
        return x + self.gain * branch


class DalleEncoder(nn.Module):
    """7x7 convolution, four groups of residual blocks with a 2x2 max pool after the first three, 1x1 to the logits."""

    config: DalleConfig

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch rows columns {self.config.vocabulary}"]:
        """Images as `map_pixels` gives them to logits, float32 at least."""
        c = self.config
        gain = 1.0 / (GROUPS * c.blocks) ** 2
        x = nn.Conv(c.hidden, (7, 7), dtype=c.dtype, name="input")(images)
        for group in range(GROUPS):
            for index in range(c.blocks):
                name = f"group_{group + 1}_block_{index + 1}"
                x = ResidualBlock(2**group * c.hidden, gain, c.dtype, name=name)(x)
            if group < GROUPS - 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
        # OpenAI's last convolution stays in float32 too: ids are an argmax over close logits.
        x = nn.relu(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        return nn.Conv(c.vocabulary, (1, 1), name="output")(x)

    def ids(self, images: Float[Array, "batch height width 3"]) -> Int32[Array, "batch patches"]:
        """The most likely id of every cell, row-major; images as above."""
        return jnp.argmax(self(images), axis=-1).reshape(len(images), -1).astype(jnp.int32)
