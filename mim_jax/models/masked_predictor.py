"""A full encoder, one MASK vector and one linear layer: a ViT as two streams (MaPeT, PIM) or one (MIM, SimMIM), or a Swin (SimMIM).

Two-stream attention with shared weights (docs/papers/mapet.md 3-5) needs no second encoder: content tokens and queries are one
sequence for the same blocks, of which the first tokens are keys and a boolean mask says who sees whom. Tokens stand in **rank
order**, not raster order: attention does not care, and the masks become constants shared by the whole batch
(`attention_masks.py`).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mim_jax.models.attention_masks import TwoStreams
from mim_jax.models.layers import Dense, add_parameter, broadcast_parameter, gather_tokens, uninitialised
from mim_jax.models.swin import Swin, SwinConfig
from mim_jax.models.vit import ViT, ViTConfig


class MaskedPredictor(nn.Module):
    """The network of MaPeT, PIM, MIM and SimMIM; the same parameter tree for all.

    outputs: values per patch: the size of the vocabulary, or p p 3 pixels.
    """

    config: ViTConfig
    outputs: int

    def setup(self) -> None:
        self.encoder = ViT(self.config)
        self.mask_token = self.param("mask_token", uninitialised, (1, 1, self.config.width))
        self.head = Dense(self.outputs, dtype=self.config.dtype)

    def two_stream(
        self,
        patches: Float[Array, "batch patches patch_dim"],
        order: Int[Array, "batch tokens"],
        layout: TwoStreams,
        *,
        drop_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch {layout.targets} {self.outputs}"]:
        """What is predicted for every target, in rank order.

        Args:
            patches: in raster order.
            order: CLS = 0 first; those after the context are the targets.
            layout: how the tokens stand and who sees whom.
            drop_keys: None in evaluation; one draw a branch, shared by both streams.
        """
        context = layout.context
        order = jnp.concatenate([order[:, context:][:, ::-1], order[:, :context]], axis=1)
        table = jnp.broadcast_to(self.encoder.positions(), (*order.shape, self.config.width))
        positions = gather_tokens(table, order)
        # Pixels are gathered before the projection: no scatter in the backward pass. CLS (index 0) has none.
        place = jnp.concatenate([order[:, : layout.targets], order[:, layout.targets + 1 :]], axis=1)
        embedded = self.encoder.embed(gather_tokens(patches, place - 1))
        at = layout.targets
        real = jnp.concatenate(
            [embedded[:, :at], self.encoder.cls_tokens(embedded), embedded[:, at:]], axis=1
        )
        real = add_parameter(real, positions)
        queries = (self.mask_token + positions[:, : layout.targets]).astype(real.dtype)
        tokens = jnp.concatenate([real, queries, queries] if layout.mask_tokens else [real, queries], axis=1)
        out = self.encoder.apply_blocks(
            tokens,
            mask=layout.mask_blocks,
            drop_keys=drop_keys,
            num_keys=tokens.shape[1] - layout.targets,
            num_outputs=layout.targets,  # the last content update would be thrown away
            token_index=jnp.concatenate(
                [order, *[order[:, : layout.targets]] * (1 + layout.mask_tokens)], axis=1
            ),
        )[-1]
        return self.head(self.encoder.final_norm(out[:, ::-1]))

    def masked(
        self,
        patches: Float[Array, "batch patches patch_dim"],
        mask: Bool[Array, "batch patches"],
        targets: Int[Array, "batch targets"],
        *,
        drop_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch targets {self.outputs}"]:
        """What is predicted for the hidden patches by a plain forward in which MASK replaces their embeddings (BEiT).

        Args:
            mask: True = hidden.
            targets: indices of the hidden patches (0 = first patch).
        Returns:
            in the order of `targets`.
        """
        embedded = self.encoder.embed(patches)
        hidden = broadcast_parameter(self.mask_token, embedded.shape, embedded.dtype)
        embedded = jnp.where(mask[..., None], hidden, embedded)
        tokens = jnp.concatenate([self.encoder.cls_tokens(embedded), embedded], axis=1)
        tokens = add_parameter(tokens, self.encoder.positions())
        out = self.encoder.apply_blocks(tokens, drop_keys=drop_keys)[-1]
        return self.head(self.encoder.final_norm(gather_tokens(out, targets + self.config.prefix)))

    def masked_subset(
        self,
        patches: Float[Array, "batch patches patch_dim"],
        visible: Int[Array, "batch visible"],
        hidden: Int[Array, "batch hidden"],
        *,
        drop_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch hidden {self.outputs}"]:
        """`masked` without the patches that are neither visible nor hidden: no block computes a token of theirs (AMT).

        Args:
            visible, hidden: disjoint, in any order.
        Returns:
            in the order of `hidden`; where these are all patches, what `masked` returns.
        """
        prefix = self.config.prefix
        order = jnp.concatenate([visible, hidden], axis=1) + prefix
        positions = self.encoder.positions()
        table = jnp.broadcast_to(positions, (len(patches), *positions.shape[1:]))
        seen = self.encoder.embed(gather_tokens(patches, visible))
        masks = broadcast_parameter(self.mask_token, (*hidden.shape, self.config.width), seen.dtype)
        tokens = add_parameter(jnp.concatenate([seen, masks], axis=1), gather_tokens(table, order))
        cls_tokens = add_parameter(self.encoder.cls_tokens(tokens), positions[:, :prefix])
        token_index = jnp.concatenate([jnp.zeros((len(patches), prefix), order.dtype), order], axis=1)
        out = self.encoder.apply_blocks(
            jnp.concatenate([cls_tokens, tokens], axis=1),
            drop_keys=drop_keys,
            num_outputs=hidden.shape[1],
            token_index=token_index,
        )[-1]
        return self.head(self.encoder.final_norm(out))

    def __call__(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> Float[Array, "batch patches {self.outputs}"]:
        """Visits every parameter (for initialisation): nothing hidden, every patch scored."""
        no_mask = jnp.zeros(patches.shape[:2], bool)
        all_indices = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
        return self.masked(patches, no_mask, all_indices)


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
        self,
        patches: Float[Array, "batch patches patch_dim"],
        mask: Bool[Array, "batch patches"],
        targets: Int[Array, "batch targets"],
        *,
        drop_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch targets outputs"]:
        """What is predicted for cells of the last stage while MASK stands for the hidden patches.

        Args:
            mask: True = hidden; MASK replaces these after the patch norm.
            targets: indices of cells of the last stage, raster order.
            drop_keys: for drop path; None in evaluation.
        Returns:
            in the order of `targets`.
        """
        embedded = self.encoder.embed(patches)
        hidden = broadcast_parameter(self.mask_token, embedded.shape, embedded.dtype)
        embedded = jnp.where(mask[..., None], hidden, embedded)
        out = self.encoder.apply_blocks(embedded, drop_keys=drop_keys)[-1]
        return self.head(self.encoder.final_norm(gather_tokens(out, targets)))

    def __call__(
        self, patches: Float[Array, "batch patches patch_dim"]
    ) -> Float[Array, "batch cells outputs"]:
        """Visits every parameter (for initialisation): nothing hidden, every cell predicted."""
        rows, columns = self.config.cells
        no_mask = jnp.zeros(patches.shape[:2], bool)
        all_indices = jnp.broadcast_to(jnp.arange(rows * columns), (len(patches), rows * columns))
        return self.masked(patches, no_mask, all_indices)
