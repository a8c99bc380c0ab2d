"""Swin Transformers, version 2 (res-post-norm, cosine attention, log-spaced position bias) and version 1.

Source: docs/papers/dark_secrets.md 1.2; version 1 as SimMIM's code has it (fixtures). A stage's width doubles and its map halves
from the one before: width * 2^i channels at a stride of patch * 2^i pixels.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.layers import Dense, LayerNorm, Mlp, drop_path
from mim_jax.models.swin_config import SWIN_VARIANTS, SwinConfig
from mim_jax.models.window_attention import WindowAttention

__all__ = ["SWIN_VARIANTS", "Swin", "SwinConfig"]


class SwinBlock(nn.Module):
    """Version 2: x += norm(attention(x)); x += norm(mlp(x)). Version 1: x += attention(norm(x)); x += mlp(norm(x))."""

    config: SwinConfig
    index: int

    @nn.compact
    def __call__(self, x: jax.Array, drop_keys: jax.Array | None = None) -> jax.Array:
        """[B, rows * columns, C] to the same shape; drop_keys as in `Swin.run`."""
        c = self.config
        branches: tuple[nn.Module, ...] = (
            WindowAttention(c, self.index, name="attn"),
            Mlp(int(x.shape[-1] * c.mlp_ratio), c.dtype, name="mlp"),
        )
        for number, branch in enumerate(branches):
            norm = LayerNorm(c.norm_eps, c.dtype, name=f"norm{number + 1}")
            out = norm(branch(x)) if c.version == 2 else branch(norm(x))
            x = x + drop_path(out, c.drop_path_rates[self.index], drop_keys, salt=2 * self.index + number)
        return x


class Merging(nn.Module):
    """Halves a map: four phases side by side, 4C -> 2C. The norm comes after the reduction (version 1: before it)."""

    config: SwinConfig
    stage: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, rows * columns, C] to [B, halves of both, 2C]; odd sides are padded with zeros."""
        c = self.config
        (rows, columns), (half_rows, half_columns) = c.maps[self.stage], c.maps[self.stage + 1]
        x = x.reshape(len(x), rows, columns, x.shape[-1])
        x = jnp.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)))
        x = x.reshape(len(x), half_rows, 2, half_columns, 2, -1)
        # (row, column) phases in the order (0, 0), (1, 0), (0, 1), (1, 1)
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(len(x), half_rows * half_columns, -1)
        reduction = Dense(x.shape[-1] // 2, use_bias=False, dtype=c.dtype, name="reduction")
        norm = LayerNorm(c.norm_eps, c.dtype, name="norm")
        return norm(reduction(x)) if c.version == 2 else reduction(norm(x))


def _block_class(remat: str) -> type[nn.Module]:
    if remat == "none":
        return SwinBlock
    policies = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    if remat not in policies:
        raise ValueError(f"model.remat is none, block or dots, not {remat!r}")
    return nn.remat(SwinBlock, prevent_cse=False, policy=policies[remat])


class Swin(nn.Module):
    """The encoder; the methods compose `embed`, `run` and `final_norm`, as they do with a ViT."""

    config: SwinConfig

    def setup(self) -> None:
        c = self.config
        self.patch_embed = Dense(c.width, dtype=c.dtype)
        self.patch_norm = LayerNorm(c.norm_eps, c.dtype)
        block = _block_class(c.remat)
        self.blocks = [block(c, index, name=f"block_{index:02d}") for index in range(c.depth)]
        self.merge = [Merging(c, stage, name=f"merge_{stage}") for stage in range(len(c.depths) - 1)]
        self.norm = LayerNorm(c.norm_eps, c.dtype)

    def embed(self, patches: jax.Array) -> jax.Array:
        """Projects and norms patch vectors, [B, L, p p 3] to [B, L, C]."""
        return self.patch_norm(self.patch_embed(patches))

    def tokens(self, patches: jax.Array) -> jax.Array:
        """What `run` takes: `embed`, as there are neither CLS nor absolute positions."""
        return self.embed(patches)

    def run(self, x: jax.Array, *, drop_keys: jax.Array | None = None) -> list[jax.Array]:
        """All stages, before the final norm.

        Args:
            x: tokens of the first stage [B, L, C], all of them, raster order.
            drop_keys: typed keys [B] for drop path; None in evaluation.
        Returns:
            the tokens after every block, [B, rows * columns, channels] of its stage, before the next merging.
        """
        outputs = []
        for index, block in enumerate(self.blocks):
            stage = self.config.stage_of[index]
            if index and stage != self.config.stage_of[index - 1]:
                x = self.merge[stage - 1](x)
            x = block(x, drop_keys)
            outputs.append(x)
        return outputs

    def final_norm(self, x: jax.Array) -> jax.Array:
        """Of the last stage's tokens [..., features]."""
        return self.norm(x)

    def pooled(self, x: jax.Array, pool: str) -> jax.Array:
        """What a classifier's head reads of the last block's tokens [B, n, features]: the mean of the normed ones."""
        return jnp.mean(self.final_norm(x), axis=1)

    def layers(self, patches: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        """The tokens after every block (not normed) and after the final norm."""
        outputs = self.run(self.tokens(patches))
        return outputs, self.final_norm(outputs[-1])

    def stages(self, patches: jax.Array) -> list[jax.Array]:
        """The map after every stage, [B, rows, columns, channels], before merging and not normed (dense tasks)."""
        outputs = self.run(self.tokens(patches))
        last = [end - 1 for end in itertools.accumulate(self.config.depths)]
        return [
            outputs[index].reshape(len(patches), *grid, -1)
            for index, grid in zip(last, self.config.maps, strict=True)
        ]

    def __call__(self, patches: jax.Array, drop_keys: jax.Array | None = None) -> jax.Array:
        """Whole images as patches [B, L, p p 3] to the normed tokens of the last stage [B, cells, features]."""
        return self.final_norm(self.run(self.tokens(patches), drop_keys=drop_keys)[-1])
