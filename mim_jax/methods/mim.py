"""MIM (BEiT-like): hidden patches are replaced by MASK, every hidden patch's token id is predicted independently."""

import dataclasses
from typing import Annotated

import jax

from mim_jax.config.check import ConfigError
from mim_jax.config.kinds import Count, Share, words
from mim_jax.corruptions.masking import block_mask, mask_from_noise, masked_first
from mim_jax.methods.flops import dense_flops, plain_flops
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
from mim_jax.methods.preprocessing import DEFAULT, Preprocessing
from mim_jax.methods.token_grid import token_grid
from mim_jax.methods.token_method import TokenMethod, TokenOptions, labels_at
from mim_jax.targets.pixels import patchify


@dataclasses.dataclass(frozen=True)
class MimOptions(TokenOptions):
    masking: Annotated[str, words("random", "block")] = (
        "random"  # random | block (BEiT's rectangles, topped up with random patches)
    )
    num_masked: Count | None = None  # None = mask_ratio of the patches
    mask_ratio: Share = 0.75
    min_block: Count = 16  # patches; block masking only


class Mim(TokenMethod):
    """One content-only forward of N slots."""

    name = "mim"

    def __init__(self, net: Encoder, options: MimOptions, preprocessing: Preprocessing = DEFAULT) -> None:
        super().__init__(net, options, preprocessing)
        length = self.vit.num_patches
        self.options = options
        self.num_masked = (
            options.num_masked if options.num_masked is not None else round(options.mask_ratio * length)
        )
        if not 1 <= self.num_masked <= length:
            raise ConfigError(
                f"config.method.num_masked={self.num_masked} must lie in 1..{length}, the number of patches"
            )

    def draws(self, keys: jax.Array) -> Draws:
        """`mask` bool [B, L], True = hidden."""
        if self.options.masking == "random":
            return {"mask": mask_from_noise(uniform_noise(keys, self.vit.num_patches), self.num_masked)}
        grid, least = self.vit.grid, self.options.min_block
        return {"mask": jax.vmap(lambda key: block_mask(key, grid, self.num_masked, min_block=least))(keys)}

    def corrupt(self, keys: jax.Array, batch: Batch, variables: Variables, train: bool = True) -> View:
        images = self.preprocessing.images(batch)
        mask = self.draws(keys)["mask"]
        targets, _ = masked_first(mask, self.num_masked)
        network = self.preprocessing.network_input(fold(keys, 1), images, train)
        labels = self.labels(batch, images, variables.artefacts)
        return {
            "patches": patchify(network, self.vit.patch),
            "mask": mask,
            "targets": targets,
            "labels": labels_at(labels, targets),
        }

    def forward(self, variables: Variables, view: View, keys: jax.Array, train: bool) -> Outputs:
        logits = self.apply(
            variables.params,
            view["patches"],
            view["mask"],
            view["targets"],
            drop_keys=keys if train else None,
            method="masked",
        )
        return {"logits": logits}

    def flops(self) -> float:
        return (
            dense_flops(self.vit.num_patches, 3 * self.vit.patch**2, self.vit.width, first=True)
            + plain_flops(self.vit, self.vit.num_tokens)
            + dense_flops(self.num_masked, self.vit.width, self.vocabulary)
        )

    def image_grid(self, view: View, outputs: Outputs, variables: Variables) -> ImageGrid | None:
        return token_grid(self, view, outputs, variables.artefacts)
