"""The encoder that a configuration describes: a ViT or a Swin."""

import jax.numpy as jnp

from mim_jax.config.resolve import image_size
from mim_jax.config.schema import Config, resolved
from mim_jax.models.swin import SWIN_VARIANTS, SwinConfig
from mim_jax.models.vit import ViTConfig


def encoder_config(config: Config) -> ViTConfig | SwinConfig:
    """The encoder that a resolved configuration describes."""
    m = config.model
    dtype = None if m.dtype == "float32" else jnp.dtype(m.dtype)
    if m.variant in SWIN_VARIANTS:
        sizes = SWIN_VARIANTS[m.variant]
        stages = len(sizes["depths"])
        return SwinConfig(
            image_size=image_size(m),
            patch=resolved(m.patch),
            **sizes,
            windows=(m.window,) * stages,
            pretrained_windows=m.pretrained_windows,
            mlp_ratio=m.mlp_ratio,
            drop_path=m.drop_path,
            norm_eps=resolved(m.norm_eps),
            remat=m.remat,
            dtype=dtype,
        )
    return ViTConfig(
        image_size=image_size(m),
        patch=resolved(m.patch),
        width=resolved(m.width),
        depth=resolved(m.depth),
        heads=resolved(m.heads),
        mlp_ratio=m.mlp_ratio,
        positions=m.positions,
        relative_bias=m.relative_bias,
        cls=m.cls,
        layer_scale=m.layer_scale,
        qkv_bias=m.qkv_bias,
        drop_path=m.drop_path,
        norm_eps=resolved(m.norm_eps),
        pre_norm=m.pre_norm,
        activation=m.activation,
        patch_bias=m.patch_bias,
        remat=m.remat,
        attention=m.attention,
        dtype=dtype,
    )
