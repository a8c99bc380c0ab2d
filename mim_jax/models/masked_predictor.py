"""A full ViT, one MASK vector and one linear layer: as two streams (MaPeT, PIM) or one (MIM, SimMIM).

Two-stream attention with shared weights (docs/papers/mapet.md 3-5) needs no second encoder: content rows and query rows are
one sequence for the same blocks, of which the first rows are keys and a boolean mask says who sees whom. Rows stand in
**rank order**, not raster order: attention does not care, and the masks become constants shared by the whole batch
(`two_streams.py`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.layers import Dense, add_parameter, broadcast_parameter, uninitialised
from mim_jax.models.two_streams import TwoStreams
from mim_jax.models.vit import ViT, ViTConfig


def take_rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [B, N, D] at index [B, n] to [B, n, D]."""
    return jnp.take_along_axis(x, index[..., None], axis=1)


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
        patches: jax.Array,
        order: jax.Array,
        layout: TwoStreams,
        *,
        drop_keys: jax.Array | None = None,
    ) -> jax.Array:
        """What is predicted for every target, in rank order.

        Args:
            patches: [B, L, p p 3], raster order.
            order: int32 [B, N], CLS = 0 first; the slots after the context are the targets.
            layout: how the rows stand and who sees whom.
            drop_keys: typed keys [B], None in evaluation; one draw a branch, shared by both streams.
        Returns:
            [B, P, outputs].
        """
        context = layout.context
        order = jnp.concatenate([order[:, context:][:, ::-1], order[:, :context]], axis=1)
        table = jnp.broadcast_to(self.encoder.positions(), (*order.shape, self.config.width))
        positions = take_rows(table, order)
        # Pixels are gathered before the projection: no scatter in the backward pass. CLS (slot 0) has none.
        place = jnp.concatenate([order[:, : layout.targets], order[:, layout.targets + 1 :]], axis=1)
        embedded = self.encoder.embed(take_rows(patches, place - 1))
        at = layout.targets
        real = jnp.concatenate([embedded[:, :at], self.encoder.cls_row(embedded), embedded[:, at:]], axis=1)
        real = add_parameter(real, positions)
        queries = (self.mask_token + positions[:, : layout.targets]).astype(real.dtype)
        rows = jnp.concatenate([real, queries, queries] if layout.mask_tokens else [real, queries], axis=1)
        out = self.encoder.run(
            rows,
            mask=layout.bands,
            drop_keys=drop_keys,
            num_keys=rows.shape[1] - layout.targets,
            num_outputs=layout.targets,  # the last content update would be thrown away
            slots=jnp.concatenate([order, *[order[:, : layout.targets]] * (1 + layout.mask_tokens)], axis=1),
        )[-1]
        return self.head(self.encoder.final_norm(out[:, ::-1]))

    def masked(
        self, patches: jax.Array, mask: jax.Array, targets: jax.Array, *, drop_keys: jax.Array | None = None
    ) -> jax.Array:
        """What is predicted for the hidden patches by a plain forward in which MASK replaces their embeddings (BEiT).

        Args:
            patches: [B, L, p p 3].
            mask: bool [B, L], True = hidden.
            targets: int32 [B, P], indices of the hidden patches (0 = first patch).
        Returns:
            [B, P, outputs], in the order of `targets`.
        """
        embedded = self.encoder.embed(patches)
        hidden = broadcast_parameter(self.mask_token, embedded.shape, embedded.dtype)
        embedded = jnp.where(mask[..., None], hidden, embedded)
        rows = jnp.concatenate([self.encoder.cls_row(embedded), embedded], axis=1)
        rows = add_parameter(rows, self.encoder.positions())
        out = self.encoder.run(rows, drop_keys=drop_keys)[-1]
        return self.head(self.encoder.final_norm(take_rows(out, targets + self.config.prefix)))

    def kept(
        self, patches: jax.Array, visible: jax.Array, hidden: jax.Array, *, drop_keys: jax.Array | None = None
    ) -> jax.Array:
        """`masked` without the patches that are neither visible nor hidden: no row of any block holds them (AMT).

        Args:
            patches: [B, L, p p 3].
            visible: int32 [B, K]. hidden: int32 [B, M]; disjoint, in any order.
        Returns:
            [B, M, outputs], in the order of `hidden`; with K + M = L what `masked` returns.
        """
        prefix = self.config.prefix
        order = jnp.concatenate([visible, hidden], axis=1) + prefix
        positions = self.encoder.positions()
        table = jnp.broadcast_to(positions, (len(patches), *positions.shape[1:]))
        seen = self.encoder.embed(take_rows(patches, visible))
        masks = broadcast_parameter(self.mask_token, (*hidden.shape, self.config.width), seen.dtype)
        rows = add_parameter(jnp.concatenate([seen, masks], axis=1), take_rows(table, order))
        first = add_parameter(self.encoder.cls_row(rows), positions[:, :prefix])
        slots = jnp.concatenate([jnp.zeros((len(patches), prefix), order.dtype), order], axis=1)
        out = self.encoder.run(
            jnp.concatenate([first, rows], axis=1),
            drop_keys=drop_keys,
            num_outputs=hidden.shape[1],
            slots=slots,
        )[-1]
        return self.head(self.encoder.final_norm(out))

    def __call__(self, patches: jax.Array) -> jax.Array:
        """Visits every parameter (for initialisation): nothing hidden, every patch scored."""
        nothing = jnp.zeros(patches.shape[:2], bool)
        everything = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
        return self.masked(patches, nothing, everything)
