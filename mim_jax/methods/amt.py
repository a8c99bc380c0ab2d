"""AMT: attention decides what is masked and what is thrown away, on MAE or SimMIM (docs/papers/amt.md 3 to 6).

The first epochs are the base method. Then a bank holds what CLS attends to in every training image; the most attended
patches of a random draw by these weights are masked, the next are thrown (no encoder, no decoder, no loss sees them),
the least attended stay visible.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from mim_jax.config.check import ConfigError
from mim_jax.config.kinds import Depth, Heads, Share, Side, Width, words
from mim_jax.corruptions.attention_driven import (
    num_masked_and_thrown,
    partition,
    patches_of_units,
    scores_from_noise,
    unit_weights,
)
from mim_jax.corruptions.masking import num_units_masked
from mim_jax.methods.amt_grid import amt_grid
from mim_jax.methods.attention_bank import NAME, AttentionBank, BankOptions, attention_maps
from mim_jax.methods.flops import dense_flops, plain_flops
from mim_jax.methods.mae import Mae, MaeOptions
from mim_jax.methods.method import (
    Batch,
    Draws,
    Encoder,
    ImageGrid,
    Outputs,
    Phase,
    Refresh,
    Variables,
    View,
    ViTMethod,
)
from mim_jax.methods.preprocessing import DEFAULT, Preprocessing
from mim_jax.methods.simmim import Simmim, SimmimOptions
from mim_jax.models.vit import Params

RATIOS = {
    ("mae", "amt"): (0.45, 0.40),
    ("mae", "am"): (0.75, 0.0),
    ("simmim", "amt"): (0.44, 0.26),
    ("simmim", "am"): (0.6, 0.0),  # the release has no such setting; SimMIM's own ratio
}
"""(base, mode) -> shares of the patches that are masked and thrown."""


@dataclasses.dataclass(frozen=True)
class AmtOptions(BankOptions):
    base: Annotated[str, words("mae", "simmim")] = "mae"  # mae | simmim
    mode: Annotated[str, words("amt", "am")] = "amt"  # amt (mask and throw) | am (mask only)
    mask_ratio: Share | None = None  # None = by base and mode, as throw_ratio
    throw_ratio: Share | None = None
    random_ratio: Share | None = None  # masked up to `start`; None = 0.75 (mae), mask_ratio (simmim)
    norm_pix: bool = False  # mae: as in MAE's options, and the decoder's sizes
    decoder_width: Width = 512
    decoder_depth: Depth = 8
    decoder_heads: Heads = 16
    unit: Side = 2  # simmim: side of a mask unit in patches

    @property
    def ratios(self) -> tuple[float, float]:
        """Shares of masked and of thrown patches once attention drives."""
        mask, throw = RATIOS[self.base, self.mode]
        return (
            mask if self.mask_ratio is None else self.mask_ratio,
            throw if self.throw_ratio is None else self.throw_ratio,
        )


class Driven(ViTMethod):
    """What AMT adds to a base method. `driven` is false in the phase `random`, where the method is its base."""

    name = "amt"
    amt: AmtOptions
    bank: AttentionBank
    driven: bool

    @property
    def phases(self) -> tuple[Phase, ...]:
        random, driven = (
            build(self.net, self.amt, self.preprocessing, driven=driven) for driven in (False, True)
        )
        return Phase("random", 0, random), Phase("attention", self.bank.first_epoch, driven)

    @property
    def refreshes(self) -> tuple[Refresh, ...]:
        return self.bank.refreshes

    def corrupt(self, keys: jax.Array, batch: Batch, variables: Variables, train: bool = True) -> View:
        if not self.driven:
            return super().corrupt(keys, batch, variables, train)  # type: ignore[safe-super]
        if not train:
            batch = self.with_maps(batch, variables.params)
        weights = self.bank.weights(batch, variables.artefacts)
        # The weights are for the report only; where nobody draws, XLA drops them.
        view = super().corrupt(keys, batch, variables, train)  # type: ignore[safe-super]
        return {**view, "weights": weights}

    def with_maps(self, batch: Batch, params: Params) -> Batch:
        """Held-out images have no row in the bank: the maps of these very views are computed on the spot."""
        maps = attention_maps(self, params, self.preprocessing.images(batch))
        if self.amt.control == "shuffled_bank":
            maps = jnp.roll(maps, 1, axis=0)
        whole = jnp.tile(jnp.asarray([0.0, 0.0, 1.0, 1.0]), (len(maps), 1))
        return {**batch, NAME: maps, "box": whole}

    def image_grid(self, view: View, outputs: Outputs, variables: Variables) -> ImageGrid | None:
        return amt_grid(self, view, outputs["pixels"], normalised=self.amt.norm_pix)


class AmtMae(Driven, Mae):
    """AMT on MAE: the encoder sees K patches, the decoder these and the M masked ones."""

    def __init__(
        self, net: Encoder, options: AmtOptions, preprocessing: Preprocessing = DEFAULT, driven: bool = False
    ) -> None:
        random_ratio = 0.75 if options.random_ratio is None else options.random_ratio
        decoder = (options.decoder_width, options.decoder_depth, options.decoder_heads)
        Mae.__init__(self, net, MaeOptions(random_ratio, options.norm_pix, *decoder), preprocessing)
        self.amt, self.driven, self.bank = options, driven, AttentionBank(self, options)
        try:
            masked, self.num_thrown = num_masked_and_thrown(self.vit.num_patches, *options.ratios)
        except ValueError as error:
            raise ConfigError(f"config.method.mask_ratio, throw_ratio: {error}") from error
        if driven:
            self.num_hidden = masked
            self.num_visible = self.vit.num_patches - masked - self.num_thrown

    def draws(self, keys: jax.Array) -> Draws:
        return self.bank.draws(keys, self.vit.num_patches) if self.driven else super().draws(keys)

    def split(self, keys: jax.Array, batch: Batch, variables: Variables) -> tuple[jax.Array, jax.Array]:
        if not self.driven:
            return super().split(keys, batch, variables)
        scores = scores_from_noise(self.draws(keys)["noise"], self.bank.weights(batch, variables.artefacts))
        masked, _, visible = partition(scores, self.num_hidden, self.num_thrown)
        return visible, masked


class AmtSimmim(Driven, Simmim):
    """AMT on SimMIM, in its units: the encoder runs on CLS, the visible and the masked patches (docs/papers/amt.md 5)."""

    def __init__(
        self, net: Encoder, options: AmtOptions, preprocessing: Preprocessing = DEFAULT, driven: bool = False
    ) -> None:
        mask, throw = options.ratios
        random_ratio = mask if options.random_ratio is None else options.random_ratio
        Simmim.__init__(self, net, SimmimOptions(random_ratio, options.unit), preprocessing)
        self.amt, self.driven, self.bank = options, driven, AttentionBank(self, options)
        units = self.vit.num_patches // options.unit**2
        self.units_masked, self.units_thrown = (
            num_units_masked(self.vit.grid, options.unit, ratio) for ratio in (mask, throw)
        )
        kept = units - self.units_masked - self.units_thrown
        if self.units_masked < 1 or kept < 1:
            raise ConfigError(
                f"config.method.mask_ratio={mask}, throw_ratio={throw} mask {self.units_masked} of {units} units and leave"
                f" {kept} visible: at least one of each is needed"
            )
        if driven:
            self.num_masked = self.units_masked * options.unit**2
            self.num_visible = kept * options.unit**2

    def draws(self, keys: jax.Array) -> Draws:
        units = self.vit.num_patches // self.amt.unit**2
        return self.bank.draws(keys, units) if self.driven else super().draws(keys)

    def split(self, keys: jax.Array, batch: Batch, variables: Variables) -> tuple[jax.Array, jax.Array]:
        if not self.driven:
            return super().split(keys, batch, variables)
        grid, unit = self.vit.grid, self.amt.unit
        weights = unit_weights(self.bank.weights(batch, variables.artefacts), grid, unit)
        scores = scores_from_noise(self.draws(keys)["noise"], weights)
        masked, _, kept = partition(scores, self.units_masked, self.units_thrown)
        return patches_of_units(kept, grid, unit), patches_of_units(masked, grid, unit)

    def forward(self, variables: Variables, view: View, keys: jax.Array, train: bool) -> Outputs:
        if not self.driven:
            return super().forward(variables, view, keys, train)
        inputs = (view["patches"], view["visible"], view["hidden"])
        return {
            "pixels": self.apply(
                variables.params, *inputs, drop_keys=keys if train else None, method="masked_subset"
            )
        }

    def flops(self) -> float:
        if not self.driven:
            return super().flops()
        values, masked = 3 * self.vit.patch**2, self.num_masked
        return (
            dense_flops(self.num_visible, values, self.vit.width, first=True)
            + plain_flops(self.vit, self.vit.prefix + self.num_visible + masked, masked)
            + dense_flops(masked, self.vit.width, values)
        )


def build(
    net: Encoder, options: AmtOptions, preprocessing: Preprocessing = DEFAULT, *, driven: bool = False
) -> AmtMae | AmtSimmim:
    """AMT on the base that the options name: in its random phase, or driven by attention."""
    if options.base == "mae":
        return AmtMae(net, options, preprocessing, driven)
    return AmtSimmim(net, options, preprocessing, driven)
