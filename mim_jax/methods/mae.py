"""MAE: the encoder sees a quarter of the patches, a light decoder paints the rest (docs/papers/amt.md 1)."""

import dataclasses

import jax
import jax.numpy as jnp

from mim_jax.config.check import ConfigError
from mim_jax.config.kinds import Depth, Heads, Share, Width
from mim_jax.corruptions.masking import num_kept, split_by_noise
from mim_jax.methods.flops import encoder_decoder_flops
from mim_jax.methods.method import (
    Batch,
    Draws,
    Encoder,
    ImageGrid,
    Outputs,
    Variables,
    View,
    ViTMethod,
    fold,
    uniform_noise,
)
from mim_jax.methods.pixel_grid import pixel_grid
from mim_jax.methods.preprocessing import DEFAULT, Preprocessing
from mim_jax.methods.rules import Rules, constant, normal, ones, uniform, xavier_uniform, zeros
from mim_jax.methods.terms import Terms
from mim_jax.models.encoder_decoder import DecoderConfig, EncoderDecoder
from mim_jax.models.layers import gather_tokens
from mim_jax.targets.pixels import normalise_patches, patchify


@dataclasses.dataclass(frozen=True)
class MaeOptions:
    mask_ratio: Share = 0.75
    norm_pix: bool = False  # targets normalised per patch; the published recipe of MAE sets it, AMT does not
    decoder_width: Width = 512
    decoder_depth: Depth = 8
    decoder_heads: Heads = 16


class Mae(ViTMethod):
    """Random masking; mean squared error over the hidden patches."""

    name = "mae"

    def __init__(self, net: Encoder, options: MaeOptions, preprocessing: Preprocessing = DEFAULT) -> None:
        super().__init__(net, preprocessing)
        self.options = options
        self.num_visible = num_kept(self.vit.num_patches, options.mask_ratio)
        if not 1 <= self.num_visible < self.vit.num_patches:
            raise ConfigError(
                f"config.method.mask_ratio={options.mask_ratio} leaves {self.num_visible} of {self.vit.num_patches} patches"
                " visible: at least one must be visible and one hidden"
            )
        self.num_hidden = self.vit.num_patches - self.num_visible
        self.decoder = DecoderConfig(options.decoder_width, options.decoder_depth, options.decoder_heads)
        check_decoder(self.decoder)

    @property
    def module(self) -> EncoderDecoder:
        return EncoderDecoder(self.vit, self.decoder)

    @property
    def rules(self) -> Rules:
        """docs/papers/amt.md 1.3 and 1.4: Xavier, fused q, k, v as one matrix; the CLS and MASK tokens decay."""
        return Rules(
            init=(
                (r"patch_embed/bias$", uniform((3 * self.vit.patch**2) ** -0.5)),
                (r"attn/proj/kernel$", xavier_uniform(input_axes=2)),
                (r"kernel$", xavier_uniform()),
                (r"(cls_token|mask_token|pos_embed)$", normal(0.02)),
                (r"gamma$", constant(self.vit.layer_scale or 1.0)),
                (r"scale$", ones),
                (r"(bias|table)$", zeros),
            ),
            decay=((r"(kernel|cls_token|mask_token)$", True), (r".", False)),
        )

    def draws(self, keys: jax.Array) -> Draws:
        """`noise` [B, L]: the patches of smallest noise stay visible."""
        return {"noise": uniform_noise(fold(keys, 2), self.vit.num_patches)}

    def split(self, keys: jax.Array, batch: Batch, variables: Variables) -> tuple[jax.Array, jax.Array]:
        """Indices of the visible and of the hidden patches, int32 [B, K] and [B, M]."""
        return split_by_noise(self.draws(keys)["noise"], self.num_visible)

    def corrupt(self, keys: jax.Array, batch: Batch, variables: Variables, train: bool = True) -> View:
        patches = patchify(
            self.preprocessing.network_input(keys, self.preprocessing.images(batch), train), self.vit.patch
        )
        visible, hidden = self.split(keys, batch, variables)
        return {
            "patches": patches,
            "visible": visible,
            "hidden": hidden,
            "target": normalise_patches(
                gather_tokens(patches, hidden), "joint" if self.options.norm_pix else "none"
            ),
        }

    def forward(self, variables: Variables, view: View, keys: jax.Array, train: bool) -> Outputs:
        inputs = (view["patches"], view["visible"], view["hidden"], keys if train else None)
        return {"pixels": self.apply(variables.params, *inputs, method="predict_hidden")}

    def loss(self, outputs: Outputs, view: View) -> Terms:
        return {"loss": mean_squares(outputs["pixels"], view["target"])}

    def baselines(self, view: View, variables: Variables) -> dict[str, Terms]:
        """One constant for all pixels: 0 where targets are normalised, else the whole image's mean colour."""
        constant = jnp.zeros_like(view["target"])
        if not self.options.norm_pix:
            colours = view["patches"].reshape(len(constant), -1, 3).mean(axis=1)
            constant = constant + jnp.tile(colours, self.vit.patch**2)[:, None]
        return {"constant": self.loss({"pixels": constant}, view)}

    def flops(self) -> float:
        hidden = self.num_hidden
        return encoder_decoder_flops(
            self.vit, self.decoder, visible=self.num_visible, hidden=hidden, painted=hidden
        )

    def image_grid(self, view: View, outputs: Outputs, variables: Variables) -> ImageGrid | None:
        return pixel_grid(self, view, outputs["pixels"], normalised=self.options.norm_pix)


def mean_squares(predicted: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum over patches of the mean squared error of a patch, number of patches), [B] each; in float32 at least."""
    error = jnp.square(predicted.astype(target.dtype) - target)
    return jnp.sum(jnp.mean(error, axis=-1), axis=1), jnp.full(
        target.shape[:1], target.shape[1], target.dtype
    )


def check_decoder(decoder: DecoderConfig) -> None:
    """The decoder's width must split into its heads, and carry 2-D positions."""
    if decoder.width % decoder.heads or decoder.width % 4:
        raise ConfigError(
            f"config.method.decoder_width={decoder.width} must be a multiple of config.method.decoder_heads={decoder.heads} and of 4"
        )
