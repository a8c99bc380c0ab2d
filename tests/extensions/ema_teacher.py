"""An objective with a teacher (as data2vec, arXiv 2202.03555): at hidden patches, the features that the moving average of the
parameters gives the whole image.

The trainer keeps the average (`config.optim.ema`); `forward` reads it from its variables.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections

from mim_jax.config.check import ConfigError, choose_preset, default_config, with_options
from mim_jax.config.kinds import Share
from mim_jax.config.schema import Config
from mim_jax.corruptions.masking import mask_from_noise, masked_first
from mim_jax.data import Dataset
from mim_jax.methods import register_method
from mim_jax.methods.flops import dense_flops, plain_flops
from mim_jax.methods.method import Batch, Encoder, Outputs, Variables, View, ViTMethod, fold, uniform_noise
from mim_jax.methods.preprocessing import DEFAULT, Preprocessing
from mim_jax.methods.rules import Rules, normal, ones, zeros
from mim_jax.methods.terms import Terms
from mim_jax.models.layers import gather_tokens
from mim_jax.models.masked_predictor import MaskedPredictor
from mim_jax.targets.pixels import patchify

NAME = "ema_teacher"


@dataclasses.dataclass(frozen=True)
class EmaTeacherOptions:
    mask_ratio: Share = 0.5

    def completed(self, config: Config, dataset: Dataset | None) -> "EmaTeacherOptions":
        if not config.optim.ema:
            raise ConfigError(
                "config.optim.ema=0 keeps no moving average, and so no teacher: set it, for example, to 0.996"
            )
        return self


class EmaTeacher(ViTMethod):
    """Mean squared error to the teacher's features, each normalised to mean 0 and variance 1."""

    name = NAME

    def __init__(
        self, net: Encoder, options: EmaTeacherOptions, preprocessing: Preprocessing = DEFAULT
    ) -> None:
        super().__init__(net, preprocessing)
        self.num_masked = round(options.mask_ratio * self.vit.num_patches)

    @property
    def module(self) -> MaskedPredictor:
        return MaskedPredictor(self.vit, self.vit.width)

    @property
    def rules(self) -> Rules:
        return Rules(
            init=(
                (r"(kernel|pos_embed|mask_token|cls_token)$", normal(0.02)),
                (r"(scale|gamma)$", ones),
                (r"(bias|table)$", zeros),
            )
        )

    def corrupt(self, keys: jax.Array, batch: Batch, variables: Variables, train: bool = True) -> View:
        images = self.preprocessing.images(batch)
        mask = mask_from_noise(uniform_noise(keys, self.vit.num_patches), self.num_masked)
        patches = patchify(self.preprocessing.network_input(fold(keys, 1), images, train), self.vit.patch)
        return {"patches": patches, "mask": mask, "hidden": masked_first(mask, self.num_masked)[0]}

    def forward(self, variables: Variables, view: View, keys: jax.Array, train: bool) -> Outputs:
        inputs = (view["patches"], view["mask"], view["hidden"])
        predicted = self.apply(variables.params, *inputs, drop_keys=keys if train else None, method="masked")
        tokens = self.encode_patches(variables.ema, view["patches"]).final[:, self.net.prefix :]
        taught = gather_tokens(jax.lax.stop_gradient(tokens).astype(jnp.float32), view["hidden"])
        centred = taught - jnp.mean(taught, axis=-1, keepdims=True)
        spread = jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)
        return {"predicted": predicted, "taught": centred / spread}

    def loss(self, outputs: Outputs, view: View) -> Terms:
        error = jnp.square(outputs["predicted"].astype(jnp.float32) - outputs["taught"])
        count = jnp.full(len(error), self.num_masked, jnp.float32)
        return {"loss": (jnp.sum(jnp.mean(error, axis=-1), axis=1), count)}

    def flops(self) -> float:
        embed = dense_flops(self.vit.num_patches, 3 * self.vit.patch**2, self.vit.width, first=True)
        student = embed + plain_flops(self.vit, self.vit.num_tokens)
        return student * 4 / 3 + dense_flops(
            self.num_masked, self.vit.width, self.vit.width
        )  # the teacher: forward


register_method(NAME, EmaTeacherOptions, EmaTeacher)


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    return choose_preset(preset, {"demo": demo})()


def demo() -> ml_collections.ConfigDict:
    """The configuration: digits, a tiny network."""
    config = default_config()
    with_options(config, NAME, EmaTeacherOptions)
    config.model.variant, config.model.image_size, config.model.patch = "mu", 8, 2
    config.augment.crop = "none"
    config.optim.ema = 0.9
    return config
