"""The one Vision Transformer: pre-norm blocks, and every option that the methods ask for."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Shaped

from mim_jax.models.attention import Attention, Mask
from mim_jax.models.attention_masks import last_queries
from mim_jax.models.encoder import AttentionGeometry, EncoderConfig, FeatureMap, Params
from mim_jax.models.layers import (
    Dense,
    LayerNorm,
    LayerScale,
    Mlp,
    add_parameter,
    broadcast_parameter,
    drop_path,
    split_over_examples,
    uninitialised,
)
from mim_jax.models.positions import (
    RelativePositionBias,
    bias_of_tokens,
    resize_positions,
    resize_relative_table,
    sincos_1d,
    sincos_2d,
)

__all__ = ["Params", "TransformerEncoder", "ViT", "ViTConfig"]


@dataclasses.dataclass(frozen=True)
class ViTConfig(EncoderConfig):
    """Hyper-parameters of a ViT. Images are (height, width) in pixels; non-square is fine."""

    image_size: tuple[int, int] = (224, 224)
    patch: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    positions: str = "learned"  # learned | sincos_2d | sincos_1d | none
    relative_bias: str = "none"  # none | shared | per_block
    cls: bool = True
    layer_scale: float | None = None  # initial value; None = no LayerScale
    qkv_bias: str = "qkv"  # qkv | qv | none
    drop_path: float = 0.0  # of the last block; linear over depth from 0
    norm_eps: float = 1e-6
    pre_norm: bool = False  # a LayerNorm on all tokens before block 0 (CLIP)
    activation: str = "gelu"  # gelu | quick_gelu (CLIP)
    patch_bias: bool = True  # of the patch projection; CLIP has none
    remat: str = "none"  # none | block (keep block inputs only) | dots (keep matmul results)
    attention: str = "auto"  # auto | xla | cudnn
    dtype: DTypeLike | None = None

    @property
    def module(self) -> "ViT":
        return ViT(self)

    @property
    def num_tokens(self) -> int:
        """Patches, and CLS where there is one."""
        return self.num_patches + self.prefix

    @property
    def prefix(self) -> int:
        """1 with CLS, 0 without."""
        return int(self.cls)

    def resize_parameter(
        self, name: str, value: Shaped[Array | np.ndarray, "..."], new: "ViTConfig"
    ) -> Shaped[Array | np.ndarray, "..."]:
        """Of `pos_embed` and of the tables of relative position biases; anything else stays."""
        if name == "pos_embed":
            return resize_positions(value, self.grid, new.grid, prefix=self.prefix)
        if name.endswith("relative_position_bias/table"):
            return resize_relative_table(value, self.grid, new.grid)
        return value

    @property
    def summary(self) -> str:
        """One line for people."""
        return f"ViT width {self.width}, depth {self.depth}, heads {self.heads}"

    @property
    def geometry(self) -> tuple[AttentionGeometry, ...]:
        """Where the tokens of every block's attention lie: all of them on one grid."""
        coordinates = np.moveaxis(np.indices(self.grid), 0, -1).reshape(-1, 2)
        return (AttentionGeometry(coordinates, float(self.patch), self.prefix),) * self.depth

    @property
    def features(self) -> int:
        """Channels of the feature map: the width."""
        return self.width

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Linear over depth: 0 for the first block, `drop_path` for the last."""
        return tuple(float(rate) for rate in np.linspace(0.0, self.drop_path, self.depth))


class Block(nn.Module):
    """x += scale * attention(norm(x)); x += scale * mlp(norm(x)), for the tokens that are queries."""

    config: ViTConfig
    index: int

    def setup(self) -> None:
        c = self.config
        self.norm1, self.norm2 = LayerNorm(c.norm_eps, c.dtype), LayerNorm(c.norm_eps, c.dtype)
        self.attn = Attention(c.width, c.heads, c.qkv_bias, c.attention, c.dtype)
        self.mlp = Mlp(int(c.width * c.mlp_ratio), c.dtype, c.activation)
        if c.layer_scale is not None:
            self.ls1, self.ls2 = LayerScale(), LayerScale()
        if c.relative_bias == "per_block":
            self.relative_position_bias = RelativePositionBias(c.grid, c.heads, c.cls)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        mask: Mask = None,
        position_bias: Float[Array, "... heads queries keys"] | None = None,
        drop_keys: Key[Array, " batch"] | None = None,
        num_keys: int | None = None,
        num_queries: int | None = None,
        token_index: Int[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch queries dim"]:
        """The last `num_queries` tokens attend to the first `num_keys`.

        token_index: as in `TransformerEncoder.apply_blocks`.
        """
        x = split_over_examples(x)
        branch = self.attn(
            self.norm1(x),
            num_keys=num_keys,
            num_queries=num_queries,
            mask=mask,
            position_bias=self._bias(position_bias, token_index, num_queries, num_keys),
        )
        x = x[:, x.shape[1] - branch.shape[1] :] + self._scaled(branch, 1, drop_keys)
        return x + self._scaled(self.mlp(self.norm2(x)), 2, drop_keys)

    def attention_row(
        self,
        x: Float[Array, "batch tokens dim"],
        query: int | None,
        position_bias: Float[Array, "... heads tokens tokens"] | None = None,
    ) -> Float[Array, "batch heads tokens"]:
        """What one token attends to in this block; as `Attention.row`."""
        return self.attn.row(self.norm1(x), query, self._bias(position_bias, None, None, None))

    def _scaled(self, branch: jax.Array, number: int, drop_keys: jax.Array | None) -> jax.Array:
        if self.config.layer_scale is not None:
            branch = (self.ls1 if number == 1 else self.ls2)(branch)
        rate = self.config.drop_path_rates[self.index]
        return drop_path(branch, rate, drop_keys, salt=2 * self.index + number - 1)

    def _bias(
        self, shared: jax.Array | None, token_index: jax.Array | None, queries: int | None, keys: int | None
    ) -> jax.Array | None:
        """The bias that all blocks share plus this block's own, of the queries to the keys."""
        if self.config.relative_bias != "per_block":
            return shared
        block_bias = bias_of_tokens(self.relative_position_bias(), token_index, queries)[..., :keys]
        return block_bias if shared is None else shared + block_bias


def _block_class(remat: str) -> type[nn.Module]:
    if remat == "none":
        return Block
    policies = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    if remat not in policies:
        raise ValueError(f"model.remat is none, block or dots, not {remat!r}")
    # arguments 5 and 6 (self is 0) are the two counts: static
    return nn.remat(Block, prevent_cse=False, policy=policies[remat], static_argnums=(5, 6))


class TransformerEncoder(nn.Module):
    """Positions, blocks and final norm: an encoder without its embedding, or a decoder."""

    config: ViTConfig

    def setup(self) -> None:
        c = self.config
        if c.positions == "learned":
            self.pos_embed = self.param("pos_embed", uninitialised, (1, c.num_tokens, c.width))
        if c.relative_bias == "shared":
            self.relative_position_bias = RelativePositionBias(c.grid, c.heads, c.cls)
        block = _block_class(c.remat)
        self.blocks = [block(c, index, name=f"block_{index:02d}") for index in range(c.depth)]
        self.norm = LayerNorm(c.norm_eps, c.dtype)

    def positions(self) -> Float[Array, "1 {self.config.num_tokens} {self.config.width}"]:
        """The position table, zeros where there is none; the CLS row of the fixed tables is 0."""
        c = self.config
        if c.positions == "learned":
            return self.pos_embed
        tables = {
            "sincos_2d": lambda: sincos_2d(c.grid, c.width),
            "sincos_1d": lambda: sincos_1d(c.num_patches, c.width),
            "none": lambda: np.zeros((c.num_patches, c.width)),
        }
        if c.positions not in tables:
            raise ValueError(f"model.positions is learned, {', '.join(tables)}, not {c.positions!r}")
        return jnp.asarray(np.pad(tables[c.positions](), ((c.prefix, 0), (0, 0)))[None], jnp.float32)

    def apply_blocks(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        mask: Mask = None,
        drop_keys: Key[Array, " batch"] | None = None,
        num_keys: int | None = None,
        num_outputs: int | None = None,
        token_index: Int[Array, "batch tokens"] | None = None,
    ) -> list[Float[Array, "batch _ dim"]]:
        """All blocks, before the final norm.

        Args:
            mask: broadcastable to [batch, heads, tokens, num_keys], or blocks of all tokens as queries.
            drop_keys: for drop path; None in evaluation.
            num_keys: the first so many tokens are keys and values in every block (None = all).
            num_outputs: the last block updates the last so many tokens only (None = all).
            token_index: the place of every token among all of an image's (0 = CLS, if there is one), where they
                are not all of them in raster order; only a relative position bias asks.
        Returns:
            the tokens after every block; the last entry has `num_outputs` of them.
        """
        c, outputs = self.config, []
        x = self._norm_inputs(x)
        for index, block in enumerate(self.blocks):
            last = index == c.depth - 1
            queries = num_outputs if last else None
            if queries and mask is not None:
                mask = last_queries(mask, queries) if isinstance(mask, tuple) else mask[..., -queries:, :]
            bias = self._shared_bias(token_index, queries)
            x = block(
                x,
                mask,
                None if bias is None else bias[..., :num_keys],
                drop_keys,
                num_keys,
                queries,
                token_index,
            )
            outputs.append(x)
        return outputs

    def final_norm(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.norm(x)

    def pooled(self, tokens: Float[Array, "batch tokens dim"], pool: str) -> Float[Array, "batch dim"]:
        """What a classifier's head reads of the last block's tokens: the norm of the patches' mean, or of CLS."""
        return self.final_norm(
            jnp.mean(tokens[:, self.config.prefix :], axis=1) if pool == "mean" else tokens[:, 0]
        )

    def _norm_inputs(self, x: jax.Array) -> jax.Array:
        """What happens to the tokens before block 0; in a decoder nothing, whatever its encoder does."""
        return x

    def _shared_bias(
        self, token_index: jax.Array | None = None, queries: int | None = None
    ) -> jax.Array | None:
        if self.config.relative_bias != "shared":
            return None
        return bias_of_tokens(self.relative_position_bias(), token_index, queries)


class ViT(TransformerEncoder):
    """A plain ViT on patches. The methods compose `embed`, `cls_tokens`, `positions`, `apply_blocks` and `final_norm`."""

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.patch_embed = Dense(c.width, use_bias=c.patch_bias, dtype=c.dtype)
        if c.pre_norm:
            self.norm_pre = LayerNorm(c.norm_eps, c.dtype)
        if c.cls:
            self.cls_token = self.param("cls_token", uninitialised, (1, 1, c.width))

    def embed(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> Float[Array, "batch patches {self.config.width}"]:
        """Projects patch vectors; no positions yet."""
        return self.patch_embed(patches)

    def cls_tokens(
        self, like: Float[Array, "batch tokens dim"]
    ) -> Float[Array, "batch {self.config.prefix} dim"]:
        """The CLS token (if there is one) for the batch of `like`; no position yet."""
        if not self.config.cls:
            return jnp.zeros((like.shape[0], 0, self.config.width), like.dtype)
        return broadcast_parameter(self.cls_token, (like.shape[0], 1, self.config.width), like.dtype)

    def input_tokens(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> Float[Array, "batch {self.config.prefix}+patches {self.config.width}"]:
        """All tokens of whole images: CLS and patches with their positions."""
        x = self.embed(patches)
        x = jnp.concatenate([self.cls_tokens(x), x], axis=1)
        return add_parameter(x, self.positions())

    def __call__(
        self, patches: Float[Array, "batch patches patch_dim"], drop_keys: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch {self.config.prefix}+patches {self.config.width}"]:
        """Whole images as patches to the normed tokens."""
        return self.final_norm(self.apply_blocks(self.input_tokens(patches), drop_keys=drop_keys)[-1])

    def layers(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> tuple[list[Float[Array, "batch _ _"]], Float[Array, "batch tokens dim"]]:
        """The tokens after every block (not normed) and after the final norm."""
        outputs = self.apply_blocks(self.input_tokens(patches))
        return outputs, self.final_norm(outputs[-1])

    def feature_maps(
        self, patches: Float[Array, "batch patches patch_dim"], taps: Sequence[int]
    ) -> list[FeatureMap]:
        """The patches after blocks; as `EncoderConfig.feature_maps`."""
        outputs = self.apply_blocks(self.input_tokens(patches))
        c = self.config
        return [
            FeatureMap(c.patch, outputs[tap][:, c.prefix :].reshape(len(patches), *c.grid, c.width))
            for tap in taps
        ]

    def attention_row(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> Float[Array, "batch {self.config.heads} {self.config.prefix}+patches"]:
        """What CLS attends to in the last block; the other queries' weights are never computed.

        Without CLS: what the mean of all queries attends to (ours; the papers have a CLS).
        """
        x = self._norm_inputs(self.input_tokens(patches))
        for block in self.blocks[:-1]:
            x = block(x, None, self._shared_bias())
        return self.blocks[-1].attention_row(x, 0 if self.config.cls else None, self._shared_bias())

    def _norm_inputs(self, x: jax.Array) -> jax.Array:
        return self.norm_pre(x) if self.config.pre_norm else x
