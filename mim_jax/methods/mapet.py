"""MaPeT and its relatives (docs/papers/mapet.md): permuted prediction of token ids with two streams.

One mask rule, five objectives:

| objective | keys | context | targets see |
|---|---|---|---|
| mapet | pixels and MASK tokens | a quarter | earlier targets as pixels, later ones as MASK |
| pim | pixels | a quarter | earlier targets as pixels |
| full_pim | pixels | CLS only | earlier targets as pixels |
| grouped | pixels and MASK tokens | a quarter | targets of earlier groups as pixels, the others as MASK |
| mim | pixels and MASK tokens | a quarter | all targets as MASK (run as one plain forward: `mim.py`) |
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.config.check import ConfigError
from mim_jax.config.kinds import Count, words
from mim_jax.corruptions.permutation import attention_masks, order_from_noise, ranks, tie_ranks
from mim_jax.methods.flops import dense_flops, two_stream_flops
from mim_jax.methods.method import (
    Batch,
    Draws,
    Encoder,
    ImageGrid,
    Outputs,
    Variables,
    View,
    fold,
    uniform_noise,
)
from mim_jax.methods.mim import Mim, MimOptions
from mim_jax.methods.preprocessing import DEFAULT, Preprocessing
from mim_jax.methods.token_grid import token_grid
from mim_jax.methods.token_method import TokenMethod, TokenOptions, labels_at
from mim_jax.models.attention_masks import TwoStreams
from mim_jax.targets.pixels import patchify

OBJECTIVES = ("mapet", "pim", "full_pim", "grouped", "mim")


@dataclasses.dataclass(frozen=True)
class MapetOptions(TokenOptions):
    objective: Annotated[str, words(*OBJECTIVES)] = "mapet"  # mapet | pim | full_pim | grouped | mim
    context: Count | None = None  # slots, CLS included; None = 1 + round(L / 4)
    groups: Count = 4  # of targets; grouped only
    masking: Annotated[str, words("random", "block")] = "random"  # random | block; mim only


def build(net: Encoder, options: MapetOptions, preprocessing: Preprocessing = DEFAULT) -> TokenMethod:
    """The method of an objective. `mim` hides as many patches as MaPeT has targets (an equal comparison)."""
    mapet = Mapet(net, options, preprocessing)
    if options.objective != "mim":
        return mapet
    return Mim(
        net,
        MimOptions(
            masking=options.masking,
            num_masked=mapet.num_targets,
            **{field.name: getattr(options, field.name) for field in dataclasses.fields(TokenOptions)},
        ),
        preprocessing,
    )


class Mapet(TokenMethod):
    """Two streams over the slots in rank order, so that the attention masks are constants (see `MaskedPredictor`)."""

    name = "mapet"

    def __init__(self, net: Encoder, options: MapetOptions, preprocessing: Preprocessing = DEFAULT) -> None:
        super().__init__(net, options, preprocessing)
        self.options = options
        slots = 1 + self.vit.num_patches
        if not self.vit.cls:
            raise ConfigError(
                "config.model.cls=False cannot be used with mapet: CLS is the first context slot of every order"
            )
        default = 1 if options.objective == "full_pim" else 1 + round(self.vit.num_patches / 4)
        self.context = default if options.context is None else options.context
        if not 1 <= self.context < slots:
            raise ConfigError(
                f"config.method.context={self.context} must lie in 1..{slots - 1}: CLS counts, and a target must be left"
            )
        self.num_targets = slots - self.context
        self.mask_tokens = options.objective not in ("pim", "full_pim")
        if options.objective == "grouped" and not 1 <= options.groups <= self.num_targets:
            raise ConfigError(
                f"config.method.groups={options.groups} must lie in 1..{self.num_targets}, the number of targets"
            )

    @functools.cached_property
    def layout(self) -> TwoStreams:
        """Who sees whom when the slots stand in rank order; the same for every example."""
        slots = 1 + self.vit.num_patches
        with jax.ensure_compile_time_eval():
            rank, targets = jnp.arange(slots), jnp.arange(self.context, slots)
            if self.options.objective == "grouped":
                rank = tie_ranks(rank, self.context, self.options.groups)
            content, query = (np.asarray(mask) for mask in attention_masks(rank, targets, self.context))
        keys = slots + (self.num_targets if self.mask_tokens else 0)
        return TwoStreams(content[:keys, :keys], query[:, :keys], self.context)

    def draws(self, keys: jax.Array) -> Draws:
        """`noise` [B, L]: patches stand in the order of their noise, ascending, behind CLS."""
        return {"noise": uniform_noise(keys, self.vit.num_patches)}

    def corrupt(self, keys: jax.Array, batch: Batch, variables: Variables, train: bool = True) -> View:
        images = self.preprocessing.images(batch)
        order = order_from_noise(self.draws(keys)["noise"])
        targets = order[:, self.context :] - 1
        return {
            "patches": patchify(
                self.preprocessing.network_input(fold(keys, 1), images, train), self.vit.patch
            ),
            "order": order,
            "targets": targets,
            "labels": labels_at(self.labels(batch, images, variables.artefacts), targets),
        }

    def forward(self, variables: Variables, view: View, keys: jax.Array, train: bool) -> Outputs:
        drop_keys = keys if train else None
        logits = self.apply(
            variables.params,
            view["patches"],
            view["order"],
            self.layout,
            drop_keys=drop_keys,
            method="two_stream",
        )
        return {"logits": logits}

    def flops(self) -> float:
        layout = self.layout
        return (
            dense_flops(self.vit.num_patches, 3 * self.vit.patch**2, self.vit.width, first=True)
            + two_stream_flops(self.vit, layout)
            + dense_flops(self.num_targets, self.vit.width, self.vocabulary)
        )

    def image_grid(self, view: View, outputs: Outputs, variables: Variables) -> ImageGrid | None:
        place = jnp.maximum(ranks(view["order"])[:, 1:] - self.context + 1, 0)
        return token_grid(self, view, outputs, variables.artefacts, order=place)
