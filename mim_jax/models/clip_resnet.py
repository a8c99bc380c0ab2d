"""CLIP's ModifiedResNet up to its last residual stage: the frozen teacher of k-CLIP (docs/papers/mapet.md 8.1).

Three convolutions and an average pool as the stem; bottlenecks that pool instead of striding, in the branch before its last
convolution and in the shortcut before its projection. The attention pool is not here: k-CLIP takes the map before it.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mim_jax.models.layers import uninitialised

BN_EPS = 1e-5
EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ClipResNetConfig:
    """layers: bottlenecks of the four stages; width: channels after the stem; image_size: (height, width) in pixels."""

    layers: tuple[int, int, int, int]
    width: int
    image_size: tuple[int, int]
    dtype: DTypeLike | None = None  # of the computation; OpenAI's is float16

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the map: five halvings, each rounded down but the first."""
        height, width = self.image_size
        return (height + 1) // 2 // 16, (width + 1) // 2 // 16

    @property
    def features(self) -> int:
        """Channels of the map."""
        return 8 * EXPANSION * self.width


CLIP_RESNETS = {
    "RN50": ClipResNetConfig((3, 4, 6, 3), 64, (224, 224)),
    "RN101": ClipResNetConfig((3, 4, 23, 3), 64, (224, 224)),
    "RN50x4": ClipResNetConfig((4, 6, 10, 6), 80, (288, 288)),
    "RN50x16": ClipResNetConfig((6, 8, 18, 8), 96, (384, 384)),
    "RN50x64": ClipResNetConfig((3, 15, 36, 10), 128, (448, 448)),
}
"""By OpenAI's names, each with the image size it was trained at."""


class FrozenBatchNorm(nn.Module):
    """Batch norm by its running statistics, which are parameters here: one factor and one shift per channel."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        channels = (x.shape[-1],)
        scale = self.param("scale", uninitialised, channels)
        bias = self.param("bias", uninitialised, channels)
        mean = self.param("mean", uninitialised, channels)
        var = self.param("var", uninitialised, channels)
        factor = scale * jax.lax.rsqrt(var + BN_EPS)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return (wide * factor + (bias - mean * factor)).astype(self.dtype or x.dtype)


def _convolution(features: int, side: int, dtype: DTypeLike | None, name: str, stride: int = 1) -> nn.Conv:
    # Written-out padding: "SAME" of a strided convolution pads the other side than torch does.
    padding = [(side // 2, side // 2)] * 2
    return nn.Conv(
        features, (side, side), stride, padding=padding, use_bias=False, dtype=dtype, name=name
    )  # fmt: skip


def _average_pool(x: jax.Array) -> jax.Array:
    """2 x 2, an odd last row or column is dropped."""
    return nn.avg_pool(x, (2, 2), (2, 2))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut; with `halve` the map is pooled once in each."""

    planes: int
    halve: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch rows columns channels"]
    ) -> Float[Array, "batch rows//(1+{self.halve}) columns//(1+{self.halve}) 4*{self.planes}"]:
        out = nn.relu(self._normed(x, self.planes, 1, "1"))
        out = nn.relu(self._normed(out, self.planes, 3, "2"))
        out = _average_pool(out) if self.halve else out
        out = self._normed(out, EXPANSION * self.planes, 1, "3")
        if self.halve or x.shape[-1] != out.shape[-1]:
            x = _average_pool(x) if self.halve else x
            x = self._normed(x, EXPANSION * self.planes, 1, "_shortcut")
        return nn.relu(out + x)

    def _normed(self, x: jax.Array, features: int, side: int, suffix: str) -> jax.Array:
        x = _convolution(features, side, self.dtype, f"conv{suffix}")(x)
        return FrozenBatchNorm(self.dtype, name=f"bn{suffix}")(x)


class ClipResNet(nn.Module):
    """Stem and four stages. Parameters: conv1..3, bn1..3, then layer1_00 and so on by stage and bottleneck."""

    config: ClipResNetConfig

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch rows columns {self.config.features}"]:
        """Normalised images to the last stage's map after its ReLU.

        Float32 in accelerators' default precision is TF32 or bfloat16 inside: wrap the call in
        `jax.default_matmul_precision("highest")` where the numbers of another machine are wanted.
        """
        c, x = self.config, images
        for index, features in enumerate((c.width // 2, c.width // 2, c.width)):
            stride = 2 if index == 0 else 1
            x = _convolution(features, 3, c.dtype, f"conv{index + 1}", stride)(x)
            x = nn.relu(FrozenBatchNorm(c.dtype, name=f"bn{index + 1}")(x))
        x = _average_pool(x)
        for stage, blocks in enumerate(c.layers):
            for index in range(blocks):
                halve = stage > 0 and index == 0
                name = f"layer{stage + 1}_{index:02d}"
                x = Bottleneck(2**stage * c.width, halve, c.dtype, name=name)(x)
        return x
