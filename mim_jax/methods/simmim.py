"""SimMIM: MASK replaces hidden patches, the full encoder runs, one linear layer predicts raw pixels (spec amt.md 2)."""

import dataclasses

import jax
import jax.numpy as jnp

from mim_jax.config.check import ConfigError
from mim_jax.config.schema import Config
from mim_jax.corruptions.masking import masked_first, num_units_masked, unit_mask
from mim_jax.methods.flops import dense_flops, plain_flops
from mim_jax.methods.pixel_picture import pixel_picture
from mim_jax.methods.protocol import Artefacts, Batch, Method, Outputs, Picture, Terms, View
from mim_jax.methods.rules import Initialiser, Rules, constant, ones, truncated_normal, uniform, zeros
from mim_jax.models.masked_predictor import MaskedPredictor, take_rows
from mim_jax.models.vit import Params


@dataclasses.dataclass(frozen=True)
class SimmimOptions:
    mask_ratio: float = 0.6
    unit: int = 2  # side of a mask unit in patches: 32 px at patch 16


class Simmim(Method):
    """Units hidden at random; mean absolute error over the hidden pixels."""

    name = "simmim"

    def __init__(self, config: Config, options: SimmimOptions) -> None:
        super().__init__(config)
        self.options = options
        try:
            units = num_units_masked(self.vit.grid, options.unit, options.mask_ratio)
        except ValueError as error:
            raise ConfigError(
                f"config.method.unit={options.unit}, mask_ratio={options.mask_ratio}: {error}"
            ) from error
        self.num_masked = units * options.unit**2
        if not 1 <= self.num_masked < self.vit.num_patches:
            raise ConfigError(
                f"config.method.mask_ratio={options.mask_ratio} hides {self.num_masked} of {self.vit.num_patches} patches"
            )

    @property
    def module(self) -> MaskedPredictor:
        return MaskedPredictor(self.vit, 3 * self.vit.patch**2)

    @property
    def rules(self) -> Rules:
        """Spec amt.md 2.2: everything truncated at one sigma; branch outputs of block i (from 1) over sqrt(2 i)."""
        deep: list[tuple[str, Initialiser]] = []
        for index in range(self.vit.depth):
            std = 0.02 / (2.0 * (index + 1)) ** 0.5
            deep.append((rf"block_{index:02d}/(attn/proj|mlp/fc2)/kernel$", truncated_normal(std, 1.0)))
        return Rules(
            init=(
                *deep,
                (r"^head/", uniform(self.vit.width**-0.5)),
                (r"(kernel|cls_token|mask_token|pos_embed)$", truncated_normal(0.02, 1.0)),
                (r"gamma$", constant(self.vit.layer_scale or 1.0)),
                (r"scale$", ones),
                (r"(bias|table)$", zeros),
            )
        )

    def split(self, keys: jax.Array, batch: Batch, artefacts: Artefacts) -> tuple[jax.Array, jax.Array]:
        """Indices of the visible and of the hidden patches, int32 [B, K] and [B, M]."""
        mask_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
        o = self.options
        mask = jax.vmap(lambda key: unit_mask(key, self.vit.grid, o.unit, o.mask_ratio))(mask_keys)
        hidden, visible = masked_first(mask, self.num_masked)
        return visible, hidden

    def corrupt(self, keys: jax.Array, batch: Batch, artefacts: Artefacts) -> View:
        patches = self.network_patches(keys, batch)
        visible, hidden = self.split(keys, batch, artefacts)
        return {
            "patches": patches,
            "visible": visible,
            "hidden": hidden,
            "target": take_rows(patches, hidden),
        }

    def forward(self, params: Params, view: View, keys: jax.Array, train: bool) -> Outputs:
        drop_keys = keys if train else None
        mask = jax.vmap(lambda at: jnp.zeros(self.vit.num_patches, bool).at[at].set(True))(view["hidden"])
        pixels = self.apply(
            params, view["patches"], mask, view["hidden"], drop_keys=drop_keys, method="masked"
        )
        return {"pixels": pixels}

    def loss(self, outputs: Outputs, view: View) -> Terms:
        """Mean absolute error of all hidden values. The official one adds 1e-5 to the count of pixels; we do not."""
        target = view["target"]
        error = jnp.abs(outputs["pixels"].astype(target.dtype) - target)
        count = target.shape[1] * target.shape[2]
        return {"loss": (jnp.sum(error, axis=(1, 2)), jnp.full(len(target), count, target.dtype))}

    def baselines(self, view: View, artefacts: Artefacts) -> dict[str, Terms]:
        """The whole image's mean colour everywhere."""
        colours = view["patches"].reshape(len(view["target"]), -1, 3).mean(axis=1)
        constant = jnp.broadcast_to(jnp.tile(colours, self.vit.patch**2)[:, None], view["target"].shape)
        return {"constant": self.loss({"pixels": constant}, view)}

    def flops(self) -> float:
        values = 3 * self.vit.patch**2
        return (
            dense_flops(self.vit.num_patches, values, self.vit.width, first=True)
            + plain_flops(self.vit, self.vit.num_slots)
            + dense_flops(self.num_masked, self.vit.width, values)
        )

    def picture(self, view: View, outputs: Outputs, artefacts: Artefacts) -> Picture | None:
        return pixel_picture(self, view, outputs["pixels"], normalised=False)
