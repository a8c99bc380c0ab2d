"""Swin Transformers, version 2 (res-post-norm, cosine attention, log-spaced position bias) and version 1.

Source: docs/papers/dark_secrets.md 1.2; version 1 as SimMIM's code has it (fixtures). A stage's width doubles and its map halves
from the one before: width * 2^i channels at a stride of patch * 2^i pixels.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Shaped

from mim_jax.models.encoder import AttentionGeometry, EncoderConfig, FeatureMap
from mim_jax.models.layers import Dense, LayerNorm, Mlp, drop_path, split_over_examples
from mim_jax.models.positions import resize_relative_table
from mim_jax.models.windows import WindowAttention, WindowPlan, attention_geometry, plan_windows

_DEEP = (2, 2, 18, 2)

# What a name of a size stands for. "mu" is for tests, "nano" for CPUs (32 px images in patches of 2 or 4 px).
SWIN_VARIANTS: dict[str, dict[str, Any]] = {
    "swinv2_t": dict(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    "swinv2_s": dict(width=96, depths=_DEEP, heads=(3, 6, 12, 24)),
    "swinv2_b": dict(width=128, depths=_DEEP, heads=(4, 8, 16, 32)),
    "swinv2_l": dict(width=192, depths=_DEEP, heads=(6, 12, 24, 48)),
    "swinv2_h": dict(width=352, depths=_DEEP, heads=(11, 22, 44, 88)),
    "swinv2_mu": dict(width=16, depths=(2, 2), heads=(2, 4)),
    "swinv2_nano": dict(width=48, depths=(2, 2), heads=(3, 6)),
}


@dataclasses.dataclass(frozen=True)
class SwinConfig(EncoderConfig):
    """Hyper-parameters of a Swin; per stage: depths, heads, windows (in tokens), pretrained_windows, use_shift.

    Raises:
        ValueError: where these do not fit together.
    """

    image_size: tuple[int, int] = (192, 192)
    patch: int = 4
    width: int = 96  # of the first stage
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    windows: tuple[int, ...] = (12, 12, 12, 6)  # a map no larger than its window is one window, never shifted
    pretrained_windows: tuple[int | tuple[int, int], ...] | None = (
        None  # the position bias' own scale, a side or (rows, columns); None or 0 = the windows themselves
    )
    use_shift: tuple[bool, ...] | None = None  # None = in all stages; odd blocks of a stage shift
    mlp_ratio: float = 4.0
    drop_path: float = 0.0  # of the last block; linear over all blocks from 0
    norm_eps: float = 1e-5
    version: int = 2  # 1 = pre-norm, bias table, scaled dot product
    remat: str = "none"  # none | block (keep block inputs only) | dots (keep matmul results)
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"the version of a Swin is 1 or 2, not {self.version!r}")
        for name in ("heads", "windows", "pretrained_windows", "use_shift"):
            per_stage = getattr(self, name)
            if per_stage is not None and len(per_stage) != len(self.depths):
                raise ValueError(
                    f"{name}={per_stage} has {len(per_stage)} entries for {len(self.depths)} stages (depths={self.depths})"
                )
        if min(*self.depths, *self.windows) < 1:
            raise ValueError(f"depths={self.depths} and windows={self.windows} must be at least 1")
        for stage, heads in enumerate(self.heads):
            if self.widths[stage] % heads:
                raise ValueError(
                    f"{heads} heads do not divide the width of {self.widths[stage]} of stage {stage}"
                )

    @property
    def module(self) -> "Swin":
        return Swin(self)

    def at_size(self, image_size: tuple[int, int]) -> "SwinConfig":
        """The same network for other images; its position biases keep the scale of this one's windows."""
        return dataclasses.replace(super().at_size(image_size), pretrained_windows=self.reference_windows)

    def resize_parameter(
        self, name: str, value: Shaped[Array | np.ndarray, "..."], new: "SwinConfig"
    ) -> Shaped[Array | np.ndarray, "..."]:
        """Of version 1's tables of relative position biases; anything else stays."""
        if not name.endswith("relative_position_bias/table"):
            return value
        index = int(name.split("/", maxsplit=1)[0].removeprefix("block_"))
        return resize_relative_table(value, self.plans[index].window, new.plans[index].window)

    @property
    def prefix(self) -> int:
        """0: no CLS."""
        return 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the first stage."""
        return self.num_patches

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Linear over all blocks: 0 for the first, `drop_path` for the last."""
        return tuple(float(rate) for rate in np.linspace(0.0, self.drop_path, self.depth))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every stage."""
        return tuple(self.width * 2**stage for stage in range(len(self.depths)))

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return self.widths[-1]

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every stage's map; merging rounds up."""
        rows, columns = self.grid
        return tuple((-(-rows // 2**stage), -(-columns // 2**stage)) for stage in range(len(self.depths)))

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the last stage's map."""
        return self.maps[-1]

    @property
    def stride(self) -> int:
        """Pixels along a side of a cell of the last stage."""
        return self.patch * 2 ** (len(self.depths) - 1)

    @property
    def stage_of(self) -> tuple[int, ...]:
        """The stage of every block."""
        return tuple(stage for stage, depth in enumerate(self.depths) for _ in range(depth))

    @property
    def plans(self) -> tuple[WindowPlan, ...]:
        """How every block cuts its map; every second one of a stage is shifted, where the stage shifts at all."""
        shifts = self.use_shift or (True,) * len(self.depths)
        return tuple(
            plan_windows(self.maps[stage], self.windows[stage], shifts[stage] and bool(index % 2))
            for stage, depth in enumerate(self.depths)
            for index in range(depth)
        )

    @property
    def reference_windows(self) -> tuple[tuple[int, int], ...]:
        """The windows (rows, columns) that the position biases of every stage are scaled to."""
        known = self.pretrained_windows or (0,) * len(self.depths)
        starts = itertools.accumulate(self.depths[:-1], initial=0)
        return tuple(
            self.plans[start].window
            if not window
            else (window, window)
            if isinstance(window, int)
            else window
            for start, window in zip(starts, known, strict=True)
        )

    @property
    def summary(self) -> str:
        """One line for people."""
        blocks, windows = ("-".join(map(str, x)) for x in (self.depths, self.windows))
        return f"Swin V{self.version} width {self.width}, depths {blocks}, windows {windows}"

    @property
    def geometry(self) -> tuple[AttentionGeometry, ...]:
        """Where the tokens of every block's attention lie; padding has the label -1 (`windows.attention_geometry`)."""
        return tuple(
            attention_geometry(plan, float(self.patch * 2**stage))
            for plan, stage in zip(self.plans, self.stage_of, strict=True)
        )


class SwinBlock(nn.Module):
    """Version 2: x += norm(attention(x)); x += norm(mlp(x)). Version 1: x += attention(norm(x)); x += mlp(norm(x))."""

    config: SwinConfig
    index: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens dim"], drop_keys: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """drop_keys as in `Swin.apply_blocks`."""
        x = split_over_examples(x)
        c, stage = self.config, self.config.stage_of[self.index]
        plan, reference = c.plans[self.index], c.reference_windows[stage]
        attention = WindowAttention(
            x.shape[-1], c.heads[stage], plan, reference, c.version, c.dtype, name="attn"
        )
        branches: tuple[nn.Module, ...] = (
            attention,
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
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch quarter 2*dim"]:
        """Odd sides are padded with zeros."""
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
    """The encoder; the methods compose `embed`, `apply_blocks` and `final_norm`, as they do with a ViT."""

    config: SwinConfig

    def setup(self) -> None:
        c = self.config
        self.patch_embed = Dense(c.width, dtype=c.dtype)
        self.patch_norm = LayerNorm(c.norm_eps, c.dtype)
        block = _block_class(c.remat)
        self.blocks = [block(c, index, name=f"block_{index:02d}") for index in range(c.depth)]
        self.merge = [Merging(c, stage, name=f"merge_{stage}") for stage in range(len(c.depths) - 1)]
        self.norm = LayerNorm(c.norm_eps, c.dtype)

    def embed(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> Float[Array, "batch patches {self.config.width}"]:
        """Projects and norms patch vectors."""
        return self.patch_norm(self.patch_embed(patches))

    def input_tokens(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> Float[Array, "batch patches {self.config.width}"]:
        """What `apply_blocks` takes: `embed`, as there are neither CLS nor absolute positions."""
        return self.embed(patches)

    def apply_blocks(
        self, x: Float[Array, "batch tokens dim"], *, drop_keys: Key[Array, " batch"] | None = None
    ) -> list[Float[Array, "batch _ _"]]:
        """All stages, before the final norm.

        Args:
            x: tokens of the first stage, all of them, raster order.
            drop_keys: for drop path; None in evaluation.
        Returns:
            the tokens after every block, before the next merging.
        """
        outputs = []
        for index, block in enumerate(self.blocks):
            stage = self.config.stage_of[index]
            if index and stage != self.config.stage_of[index - 1]:
                x = self.merge[stage - 1](x)
            x = block(x, drop_keys)
            outputs.append(x)
        return outputs

    def final_norm(
        self, x: Float[Array, "*batch {self.config.features}"]
    ) -> Float[Array, "*batch {self.config.features}"]:
        """Of the last stage's tokens."""
        return self.norm(x)

    def pooled(self, x: Float[Array, "batch tokens dim"], pool: str) -> Float[Array, "batch dim"]:
        """What a classifier's head reads of the last block's tokens: the mean of the normed ones."""
        return jnp.mean(self.final_norm(x), axis=1)

    def layers(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> tuple[list[Float[Array, "batch _ _"]], Float[Array, "batch tokens dim"]]:
        """The tokens after every block (not normed) and after the final norm."""
        outputs = self.apply_blocks(self.input_tokens(patches))
        return outputs, self.final_norm(outputs[-1])

    def feature_maps(
        self, patches: Float[Array, "batch patches patch_dim"], taps: Sequence[int]
    ) -> list[FeatureMap]:
        """The maps after stages, before merging; as `EncoderConfig.feature_maps`."""
        outputs, c = self.apply_blocks(self.input_tokens(patches)), self.config
        last_blocks = [end - 1 for end in itertools.accumulate(c.depths)]
        return [
            FeatureMap(
                c.patch * c.widths[tap] // c.width,
                outputs[last_blocks[tap]].reshape(len(patches), *c.maps[tap], c.widths[tap]),
            )
            for tap in taps
        ]

    def __call__(
        self, patches: Float[Array, "batch patches patch_dim"], drop_keys: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch cells {self.config.features}"]:
        """Whole images as patches to the normed tokens of the last stage."""
        return self.final_norm(self.apply_blocks(self.input_tokens(patches), drop_keys=drop_keys)[-1])
