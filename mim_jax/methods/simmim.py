"""SimMIM: MASK replaces hidden patches, the full encoder runs, one linear layer predicts raw pixels.

On a ViT (docs/papers/amt.md 2) or a Swin (docs/papers/dark_secrets.md 1.4). What is hidden and predicted are cells: the patches of a ViT, the
tokens of a Swin's last stage, each of stride x stride pixels and of several patches.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mim_jax.config.check import ConfigError
from mim_jax.config.kinds import CountOrZero, Share, Side
from mim_jax.corruptions.masking import masked_first, num_units_masked, unit_grid, unit_mask_from_noise
from mim_jax.methods.flops import dense_flops, plain_flops, swin_flops
from mim_jax.methods.method import (
    Batch,
    Draws,
    Encoder,
    ImageGrid,
    Method,
    Outputs,
    Variables,
    View,
    fold,
    uniform_noise,
)
from mim_jax.methods.pixel_grid import pixel_grid
from mim_jax.methods.preprocessing import DEFAULT, Preprocessing
from mim_jax.methods.rules import Initialiser, Rules, constant, ones, truncated_normal, uniform, zeros
from mim_jax.methods.swin_rules import SWIN_DECAY, swin_init
from mim_jax.methods.terms import Terms
from mim_jax.models.layers import gather_tokens
from mim_jax.models.masked_predictor import MaskedPredictor, SwinPredictor
from mim_jax.models.swin import SwinConfig
from mim_jax.targets.pixels import normalise_locally, patchify, unpatchify


@dataclasses.dataclass(frozen=True)
class SimmimOptions:
    mask_ratio: Share = 0.6
    unit: Side | None = None  # side of a mask unit in cells; None = 2 patches of a ViT, 1 cell of a Swin
    local_norm: CountOrZero | None = (
        None  # side of the square a target is relative to; 0 = raw; None = 47 of a Swin
    )


class Simmim(Method):
    """Units hidden at random; mean absolute error over the hidden pixels."""

    name = "simmim"

    def __init__(self, net: Encoder, options: SimmimOptions, preprocessing: Preprocessing = DEFAULT) -> None:
        super().__init__(net, preprocessing)
        net, swin = self.net, isinstance(self.net, SwinConfig)
        self.options = options
        self.unit = options.unit or (1 if swin else 2)
        self.local_norm = (47 if swin else 0) if options.local_norm is None else options.local_norm
        self.side, self.cells = (
            (net.stride, net.cells) if isinstance(net, SwinConfig) else (net.patch, net.grid)
        )
        if (self.cells[0] * self.side, self.cells[1] * self.side) != net.image_size:
            raise ConfigError(
                f"config.model.image_size={net.image_size} is not a multiple of {self.side}, the pixels of a cell of the last stage"
            )
        try:
            units = num_units_masked(self.cells, self.unit, options.mask_ratio)
        except ValueError as error:
            raise ConfigError(
                f"config.method.unit={self.unit}, mask_ratio={options.mask_ratio}: {error}"
            ) from error
        self.units_hidden, self.num_masked = units, units * self.unit**2
        if not 1 <= self.num_masked < self.cells[0] * self.cells[1]:
            raise ConfigError(
                f"config.method.mask_ratio={options.mask_ratio} hides {self.num_masked} of {self.cells[0] * self.cells[1]} cells"
            )
        if self.local_norm and (self.local_norm < 3 or self.local_norm % 2 == 0):
            raise ConfigError(
                f"config.method.local_norm={self.local_norm} must be 0, or odd and at least 3 pixels"
            )

    @property
    def module(self) -> MaskedPredictor | SwinPredictor:
        if isinstance(self.net, SwinConfig):
            return SwinPredictor(self.net)
        return MaskedPredictor(self.net, 3 * self.side**2)

    @property
    def rules(self) -> Rules:
        """docs/papers/amt.md 2.2: everything truncated at one sigma; branch outputs of block i (from 1) over sqrt(2 i)."""
        if isinstance(self.net, SwinConfig):
            head = (r"^head/", uniform(self.net.features**-0.5))
            return Rules(init=(head, *swin_init(self.net)), decay=SWIN_DECAY)
        deep: list[tuple[str, Initialiser]] = []
        for index in range(self.net.depth):
            std = 0.02 / (2.0 * (index + 1)) ** 0.5
            deep.append((rf"block_{index:02d}/(attn/proj|mlp/fc2)/kernel$", truncated_normal(std, 1.0)))
        return Rules(
            init=(
                *deep,
                (r"^head/", uniform(self.net.width**-0.5)),
                (r"(kernel|cls_token|mask_token|pos_embed)$", truncated_normal(0.02, 1.0)),
                (r"gamma$", constant(self.net.layer_scale or 1.0)),
                (r"scale$", ones),
                (r"(bias|table)$", zeros),
            )
        )

    def draws(self, keys: jax.Array) -> Draws:
        """`noise` [B, units]: the units of largest noise are hidden."""
        rows, columns = unit_grid(self.cells, self.unit)
        return {"noise": uniform_noise(fold(keys, 2), rows * columns)}

    def split(self, keys: jax.Array, batch: Batch, variables: Variables) -> tuple[jax.Array, jax.Array]:
        """Indices of the visible and of the hidden cells, int32 [B, K] and [B, M]."""
        mask = unit_mask_from_noise(self.draws(keys)["noise"], self.cells, self.unit, self.units_hidden)
        hidden, visible = masked_first(mask, self.num_masked)
        return visible, hidden

    def corrupt(self, keys: jax.Array, batch: Batch, variables: Variables, train: bool = True) -> View:
        images = self.preprocessing.network_input(keys, self.preprocessing.images(batch), train)
        visible, hidden = self.split(keys, batch, variables)
        target = normalise_locally(images, self.local_norm) if self.local_norm else images
        return {
            "patches": patchify(images, self.net.patch),
            "visible": visible,
            "hidden": hidden,
            "target": gather_tokens(patchify(target, self.side), hidden),
        }

    def forward(self, variables: Variables, view: View, keys: jax.Array, train: bool) -> Outputs:
        drop_keys = keys if train else None
        (rows, columns), inside = self.cells, self.side // self.net.patch
        mask = jax.vmap(lambda at: jnp.zeros(rows * columns, bool).at[at].set(True))(view["hidden"])
        mask = mask.reshape(-1, rows, 1, columns, 1)
        mask = jnp.broadcast_to(mask, (len(mask), rows, inside, columns, inside))  # every patch of a cell
        pixels = self.apply(
            variables.params,
            view["patches"],
            mask.reshape(len(mask), -1),
            view["hidden"],
            drop_keys=drop_keys,
            method="masked",
        )
        return {"pixels": pixels}

    def loss(self, outputs: Outputs, view: View) -> Terms:
        """Mean absolute error of all hidden values. The official one adds 1e-5 to the count of pixels; we do not."""
        target = view["target"]
        error = jnp.abs(outputs["pixels"].astype(target.dtype) - target)
        count = target.shape[1] * target.shape[2]
        return {"loss": (jnp.sum(error, axis=(1, 2)), jnp.full(len(target), count, target.dtype))}

    def baselines(self, view: View, variables: Variables) -> dict[str, Terms]:
        """The whole image's mean colour everywhere; 0 where the target is normalised."""
        colours = view["patches"].reshape(len(view["target"]), -1, 3).mean(axis=1)
        constant = jnp.broadcast_to(jnp.tile(colours, self.side**2)[:, None], view["target"].shape)
        constant = jnp.zeros_like(constant) if self.local_norm else constant
        return {"constant": self.loss({"pixels": constant}, view)}

    def flops(self) -> float:
        net, values = self.net, 3 * self.side**2
        embed = dense_flops(net.num_patches, 3 * net.patch**2, net.width, first=True)
        blocks = swin_flops(net) if isinstance(net, SwinConfig) else plain_flops(net, net.num_tokens)
        return embed + blocks + dense_flops(self.num_masked, net.features, values)

    def image_grid(self, view: View, outputs: Outputs, variables: Variables) -> ImageGrid | None:
        if (
            self.local_norm
        ):  # such a prediction has lost its surroundings' colour: there is nothing honest to draw
            return None
        images = unpatchify(view["patches"], self.net.grid)
        cells = {**view, "patches": patchify(images, self.side)}
        return pixel_grid(self, cells, outputs["pixels"], normalised=False)
