"""An encoder on the patches that are left, and a light decoder that predicts pixels (MAE, Beyond Masking, AMT)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mim_jax.models.layers import Dense, add_parameter, gather_tokens, uninitialised
from mim_jax.models.vit import TransformerEncoder, ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder's size; positions, CLS, biases and precision follow the encoder's."""

    width: int = 512
    depth: int = 8
    heads: int = 16
    embed_bias: bool = True  # of the projection from the encoder's width

    def transformer(self, encoder: ViTConfig) -> ViTConfig:
        """The configuration of its blocks, norm and positions."""
        return dataclasses.replace(
            encoder,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            drop_path=0.0,
            layer_scale=None,
            relative_bias="none",
        )


class EncoderDecoder(nn.Module):
    """MAE's network. The encoder runs on visible patches only; the decoder adds MASK tokens for the hidden ones."""

    config: ViTConfig
    decoder_config: DecoderConfig

    def setup(self) -> None:
        self.encoder = ViT(self.config)
        self.decoder_embed = Dense(
            self.decoder_config.width, use_bias=self.decoder_config.embed_bias, dtype=self.config.dtype
        )
        self.mask_token = self.param("mask_token", uninitialised, (1, 1, self.decoder_config.width))
        self.decoder = TransformerEncoder(self.decoder_config.transformer(self.config))
        self.head = Dense(3 * self.config.patch**2, dtype=self.config.dtype)

    def encode(
        self,
        patches: Float[Array, "batch patches patch_dim"],
        visible: Int[Array, "batch visible"],
        drop_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch {self.config.prefix}+visible {self.config.width}"]:
        """The latent tokens.

        Args:
            visible: the patches the encoder sees, in any order.
        Returns:
            after the final norm.
        """
        prefix = self.config.prefix
        positions = self.encoder.positions()
        # Pixels are gathered before the projection: thrown and hidden ones cost nothing, and no scatter comes back.
        embedded = self.encoder.embed(gather_tokens(patches, visible))
        at = jnp.broadcast_to(positions[:, prefix:], (visible.shape[0], *positions[:, prefix:].shape[1:]))
        tokens = add_parameter(embedded, gather_tokens(at, visible))
        cls_tokens = add_parameter(self.encoder.cls_tokens(tokens), positions[:, :prefix])
        tokens = jnp.concatenate([cls_tokens, tokens], axis=1)
        token_index = jnp.pad(visible + prefix, ((0, 0), (prefix, 0)))  # CLS has index 0
        outputs = self.encoder.apply_blocks(tokens, drop_keys=drop_keys, token_index=token_index)
        return self.encoder.final_norm(outputs[-1])

    def decoder_inputs(
        self,
        latent: Float[Array, "batch _ dim"],
        visible: Int[Array, "batch visible"],
        hidden: Int[Array, "batch hidden"],
    ) -> Float[Array, "batch {self.config.prefix}+visible+hidden {self.decoder_config.width}"]:
        """The decoder's tokens for CLS, the visible and the hidden patches, not yet through the blocks."""
        prefix = self.config.prefix
        tokens = self.decoder_embed(latent)
        table = jnp.broadcast_to(
            self.decoder.positions(), (visible.shape[0], *self.decoder.positions().shape[1:])
        )
        cls_tokens = add_parameter(tokens[:, :prefix], table[:, :prefix])
        seen = add_parameter(tokens[:, prefix:], gather_tokens(table, visible + prefix))
        masks = (self.mask_token + gather_tokens(table, hidden + prefix)).astype(tokens.dtype)
        return jnp.concatenate([cls_tokens, seen, masks], axis=1)

    def predict_hidden(
        self,
        patches: Float[Array, "batch patches patch_dim"],
        visible: Int[Array, "batch visible"],
        hidden: Int[Array, "batch hidden"],
        drop_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch hidden patch_dim"]:
        """Pixels of the hidden patches only: the decoder's last block updates no other token."""
        tokens = self.decoder_inputs(self.encode(patches, visible, drop_keys), visible, hidden)
        out = self.decoder.apply_blocks(tokens, num_outputs=hidden.shape[1])[-1]
        return self.head(self.decoder.final_norm(out))

    def predict_all(
        self,
        patches: Float[Array, "batch patches patch_dim"],
        visible: Int[Array, "batch visible"],
        hidden: Int[Array, "batch hidden"],
        drop_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch visible+hidden patch_dim"]:
        """Pixels of the visible and then of the hidden patches, in one array."""
        tokens = self.decoder_inputs(self.encode(patches, visible, drop_keys), visible, hidden)
        out = self.decoder.apply_blocks(tokens, num_outputs=tokens.shape[1] - self.config.prefix)[-1]
        return self.head(self.decoder.final_norm(out))

    def __call__(self, patches: Float[Array, "batch patches patch_dim"]) -> Float[Array, "batch 1 patch_dim"]:
        """Visits every parameter (for initialisation)."""
        index = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
        return self.predict_hidden(patches, index[:, 1:], index[:, :1])
