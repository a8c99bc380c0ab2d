"""Beyond Masking: take away detail, place, style or patches; the network paints the original (docs/papers/beyond_masking.md).

A task joins words with +: at most one that decides which part of the image is seen (`zoom_in`, `zoom_out`), any of
`distort`, `blur`, `decolorize` (applied to what the network sees, in the order given), and `mask`.

| task | network sees | decoder paints | scored |
|---|---|---|---|
| mask | a quarter of the patches | the others | the others |
| zoom_in | the centre of a larger crop | the larger crop on the same raster: every patch lies elsewhere | patches of the centre, and the ring around it |
| zoom_out | a small crop on a mirrored canvas, at a random offset | the crop on the whole raster | all, compared on the canvas |
| distort, blur, decolorize | all patches, changed | the original | all |
| zoom_in+mask | a quarter of the centre's patches | the larger crop | hidden patches of the centre, and the ring |
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from mim_jax.config.check import ConfigError, one_of
from mim_jax.config.kinds import Depth, Heads, Name, Range, Share, ShareAboveZero, Side, Width, words
from mim_jax.corruptions import degradation, misalignment
from mim_jax.corruptions.masking import num_kept, split_by_noise
from mim_jax.data import ClassLabelView
from mim_jax.data import View as DataView
from mim_jax.methods.flops import encoder_decoder_flops
from mim_jax.methods.mae import check_decoder, mean_squares
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
from mim_jax.methods.pixel_grid import by_visible_statistics, caption, draw, draw_images, put
from mim_jax.methods.preprocessing import DEFAULT, Preprocessing
from mim_jax.methods.rules import Rules, constant, ones, truncated_normal, uniform, zeros
from mim_jax.methods.terms import Terms
from mim_jax.models.encoder_decoder import DecoderConfig, EncoderDecoder
from mim_jax.models.layers import gather_tokens
from mim_jax.targets.pixels import normalise_patches, patchify, unpatchify

GEOMETRIES = ("zoom_in", "zoom_out")
STYLES = ("distort", "blur", "decolorize")


@dataclasses.dataclass(frozen=True)
class BeyondMaskingOptions:
    task: Name = "zoom_in+mask"
    mask_ratio: Share = 0.75  # with `mask` in the task
    zoom_in_size: Side | None = None  # side of the larger crop, pixels; None = by the ratio
    zoom_out_size: Side | None = None  # side of the small crop; None = by the ratio
    zoom_in_ratio: Annotated[float, Range(1, 4)] = 9 / 7  # of that side to the encoder's
    zoom_out_ratio: ShareAboveZero = 5 / 7
    draws: Annotated[str, words("example", "batch")] = (
        "example"  # example: each image draws its own; batch: one offset and one grey for all (official)
    )
    blur_bias: bool = False  # the official blur adds a constant to each channel
    decoder_width: Width = 384
    decoder_depth: Depth = 4
    decoder_heads: Heads = 6


class BeyondMasking(ViTMethod):
    """One or several of the degradations; the target is always the original, normalised per patch and channel."""

    name = "beyond_masking"
    notes: tuple[str, ...] = ()

    def __init__(
        self, net: Encoder, options: BeyondMaskingOptions, preprocessing: Preprocessing = DEFAULT
    ) -> None:
        super().__init__(net, preprocessing)
        self.options = options
        words = [
            one_of("a word of config.method.task", w, (*GEOMETRIES, *STYLES, "mask"))
            for w in options.task.split("+")
        ]
        geometries = [word for word in words if word in GEOMETRIES]
        if len(set(words)) < len(words) or len(geometries) > 1:
            raise ConfigError(
                f"config.method.task={options.task} cannot be run: each word may stand once, and zoom_in and zoom_out both"
                " decide which part of the image is seen, so only one of them can"
            )
        self.geometry = geometries[0] if geometries else "none"
        self.styles = tuple(word for word in words if word in STYLES)
        self.masked = "mask" in words
        height, width = self.vit.image_size
        if self.geometry != "none" and height != width:
            raise ConfigError(
                f"config.method.task={options.task} needs a square config.model.image_size, got {height}x{width}"
            )
        self.side = height
        self.source_side = self._source_side()
        kept = num_kept(self.vit.num_patches, options.mask_ratio) if self.masked else self.vit.num_patches
        if not 1 <= kept <= self.vit.num_patches or (self.masked and kept == self.vit.num_patches):
            raise ConfigError(
                f"config.method.mask_ratio={options.mask_ratio} leaves {kept} of {self.vit.num_patches} patches visible"
            )
        self.num_visible = kept
        self.decoder = DecoderConfig(
            options.decoder_width, options.decoder_depth, options.decoder_heads, embed_bias=False
        )
        check_decoder(self.decoder)
        self.loss_weights = {"centre": 0.8, "edge": 0.2} if self.geometry == "zoom_in" else {"loss": 1.0}

    def _source_side(self) -> int:
        """Side of the crop that is asked of the data, pixels."""
        if self.geometry == "none":
            return self.side
        o, inward = self.options, self.geometry == "zoom_in"
        given, ratio = (o.zoom_in_size, o.zoom_in_ratio) if inward else (o.zoom_out_size, o.zoom_out_ratio)
        if given is None:  # a margin of whole pixels on every side
            exact = self.side * ratio
            side = self.side + 2 * round((exact - self.side) / 2) if inward else max(1, round(exact))
            if abs(side - exact) > 1e-6:
                self.notes = (f"{self.geometry} takes {side} px, the nearest to {ratio:.4g} of {self.side}",)
            return side
        side = given
        if (inward and (side < self.side or (side - self.side) % 2)) or (side > self.side and not inward):
            raise ConfigError(
                f"config.method.{self.geometry}_size={given} does not go with config.model.image_size={self.side}: leave it empty"
                f" for {ratio:.4g} of that, or give a whole number"
                + (" that is larger by an even margin" if inward else " that is not larger")
            )
        return side

    @property
    def module(self) -> EncoderDecoder:
        return EncoderDecoder(self.vit, self.decoder)

    @property
    def rules(self) -> Rules:
        """docs/papers/beyond_masking.md A5 and A6: truncated at one sigma; patch projection and bridge torch's default; MASK does not decay."""
        return Rules(
            init=(
                (r"patch_embed/", uniform((3 * self.vit.patch**2) ** -0.5)),
                (r"^decoder_embed/", uniform(self.vit.width**-0.5)),
                (r"(kernel|cls_token|mask_token|pos_embed)$", truncated_normal(0.02, 1.0)),
                (r"gamma$", constant(self.vit.layer_scale or 1.0)),
                (r"scale$", ones),
                (r"(bias|table|gamma)$", zeros),
            ),
            decay=((r"kernel$", True), (r".", False)),
        )

    @property
    def _source_size(self) -> tuple[int, int]:
        """Height and width of the crop that is asked of the data, pixels."""
        return self.vit.image_size if self.geometry == "none" else (self.source_side, self.source_side)

    def view(self, train: bool) -> DataView:
        return ClassLabelView(self.preprocessing.view(self._source_size, train))

    # Corruption.

    def draws(self, keys: jax.Array) -> Draws:
        """What the task draws: `offset` (zoom_out), `noise` (mask: the smallest stays visible), `centre` and `strength`
        (distort), `kernel` and `bias` (blur), `weights` (decolorize)."""
        shared = jnp.broadcast_to(keys[:1], keys.shape) if self.options.draws == "batch" else keys
        drawn: Draws = {}
        if self.geometry == "zoom_out":
            margin = self.side - self.source_side
            drawn["offset"] = jax.vmap(lambda key: misalignment.draw_offset(key, (margin, margin)))(
                fold(shared, 1)
            )
        if self.masked:
            drawn["noise"] = uniform_noise(fold(keys, 2), self.vit.num_patches)
        if "distort" in self.styles:
            drawn["centre"], drawn["strength"] = jax.vmap(misalignment.draw_distortion)(fold(keys, 3))
        if "blur" in self.styles:
            drawn["kernel"] = jax.vmap(degradation.draw_kernel)(fold(keys, 4))
            if self.options.blur_bias:
                drawn["bias"] = jax.vmap(_blur_bias)(fold(keys, 5))
        if "decolorize" in self.styles:
            drawn["weights"] = jax.vmap(degradation.draw_weights)(fold(shared, 6))
        return drawn

    def corrupt(self, keys: jax.Array, batch: Batch, variables: Variables, train: bool = True) -> View:
        original, drawn = self.preprocessing.images(batch), self.draws(keys)
        view: View = {"offset": drawn["offset"]} if self.geometry == "zoom_out" else {}
        network = self.degrade(self.preprocessing.normalise(original), view, drawn)
        view["patches"] = patchify(network, self.vit.patch)
        count = self.vit.num_patches
        if self.masked:
            view["visible"], view["hidden"] = split_by_noise(drawn["noise"], self.num_visible)
        else:
            view["visible"] = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (len(keys), count))
            view["hidden"] = jnp.zeros((len(keys), 0), jnp.int32)
        view["original"] = self.preprocessing.normalise(original)  # for the report; XLA drops it
        return view | self.targets(original, view)

    def degrade(self, images: jax.Array, view: View, drawn: Draws) -> jax.Array:
        """What the network sees of normalised images [B, h, w, 3], on the encoder's raster."""
        if self.geometry == "zoom_in":
            images = misalignment.zoom_in(images, (self.side, self.side))
        elif self.geometry == "zoom_out":
            images = self.canvas(images, view)
        for style in self.styles:
            if style == "distort":
                images = jax.vmap(misalignment.distort)(images, drawn["centre"], drawn["strength"])
            elif style == "blur":
                images = degradation.blur(images, drawn["kernel"])
                if self.options.blur_bias:
                    images = images + drawn["bias"][:, None, None]
            else:
                images = jax.vmap(degradation.decolorize)(images, drawn["weights"])
        return images

    def canvas(self, images: jax.Array, view: View) -> jax.Array:
        """Images [B, o, o, 3] on the mirrored canvas at the view's offsets."""
        return jax.vmap(lambda image, at: misalignment.zoom_out(image, at, (self.side, self.side)))(
            images, view["offset"]
        )

    def targets(self, original: jax.Array, view: View) -> View:
        """What is compared with the prediction; `original` in [0, 1], of the size that was asked of the data."""
        raster = (self.side, self.side)
        if self.geometry == "none":
            return {"target": self.scored(self.normalised(original), view)}
        if self.geometry == "zoom_in":
            centre = self.normalised(misalignment.zoom_in(original, raster))
            whole = unpatchify(self.normalised(misalignment.area_resize(original, raster)), self.vit.grid)
            ring = misalignment.area_resize(whole, (self.source_side, self.source_side))
            return {"target": self.scored(centre, view), "ring": ring}
        whole = unpatchify(self.normalised(misalignment.area_resize(original, raster)), self.vit.grid)
        small = misalignment.area_resize(whole, (self.source_side, self.source_side))
        return {"target": self.scored(patchify(self.canvas(small, view), self.vit.patch), view)}

    def normalised(self, images: jax.Array) -> jax.Array:
        """Patches of images in [0, 1], normalised per patch and channel."""
        return normalise_patches(patchify(images, self.vit.patch), "channel")

    def scored(self, patches: jax.Array, view: View) -> jax.Array:
        """Of patches [B, L, d] in raster order, those that the loss looks at: the hidden ones, or all."""
        return gather_tokens(patches, view["hidden"]) if self.masked else patches

    # Prediction.

    @property
    def paints_hidden_only(self) -> bool:
        """Whether the decoder's last block may leave the visible patches out: nothing of them is scored."""
        return self.masked and self.geometry == "none"

    def forward(self, variables: Variables, view: View, keys: jax.Array, train: bool) -> Outputs:
        indices, drop_keys = (view["visible"], view["hidden"]), keys if train else None
        if self.paints_hidden_only:
            return {
                "pixels": self.apply(
                    variables.params, view["patches"], *indices, drop_keys, method="predict_hidden"
                )
            }
        pixels = self.apply(variables.params, view["patches"], *indices, drop_keys, method="predict_all")
        if self.masked:
            pixels = gather_tokens(pixels, jnp.argsort(jnp.concatenate(indices, axis=1), axis=1))
        return {"pixels": pixels}

    def loss(self, outputs: Outputs, view: View) -> Terms:
        pixels = outputs["pixels"].astype(view["target"].dtype)
        if self.geometry == "none":
            return {"loss": mean_squares(pixels, view["target"])}
        outer = (self.source_side, self.source_side)
        image = misalignment.area_resize(unpatchify(pixels, self.vit.grid), outer)
        if self.geometry == "zoom_out":
            predicted = patchify(self.canvas(image, view), self.vit.patch)
            return {"loss": mean_squares(self.scored(predicted, view), view["target"])}
        centre = patchify(misalignment.zoom_in(image, (self.side, self.side)), self.vit.patch)
        edge = ring_error(jnp.square(image - view["ring"]), (self.source_side - self.side) // 2)
        return {
            "centre": mean_squares(self.scored(centre, view), view["target"]),
            "edge": (edge, jnp.ones_like(edge)),
        }

    def baselines(self, view: View, variables: Variables) -> dict[str, Terms]:
        """Predicting 0: every normalised patch's mean."""
        rows = view["hidden"].shape[1] if self.paints_hidden_only else self.vit.num_patches
        nothing = jnp.zeros((len(view["target"]), rows, 3 * self.vit.patch**2))
        return {"constant": self.loss({"pixels": nothing}, view)}

    def flops(self) -> float:
        hidden = self.vit.num_patches - self.num_visible
        painted = hidden if self.paints_hidden_only else self.vit.num_patches
        return encoder_decoder_flops(
            self.vit, self.decoder, visible=self.num_visible, hidden=hidden, painted=painted
        )

    def image_grid(self, view: View, outputs: Outputs, variables: Variables) -> ImageGrid | None:
        """Input, prediction and what it is compared with; targets are relative to each patch, and so drawn as they are."""
        patches, pixels = view["patches"], outputs["pixels"]
        blank = jnp.zeros_like(patches[:, : view["hidden"].shape[1]])
        shown = by_visible_statistics(pixels, patches, view["visible"])
        seen = "masked input" if self.masked else "input"
        columns = {seen: draw(self, put(patches, view["hidden"], blank))}
        if self.paints_hidden_only:
            columns["prediction"] = draw(self, put(jnp.zeros_like(patches), view["hidden"], shown))
            columns["composition"] = draw(self, put(patches, view["hidden"], shown))
        else:
            columns["prediction"] = draw(self, shown)
        columns["original"] = draw_images(
            self, misalignment.area_resize(view["original"], self.vit.image_size)
        )
        return ImageGrid(columns, caption(columns, normalised=True))


def ring_error(squares: jax.Array, margin: int) -> jax.Array:
    """Sum of the means of the four strips around the centre, per example; 0 where there is no margin (docs/papers/beyond_masking.md A10 item 9).

    Args:
        squares: [B, Z, Z, 3]. margin: width of the ring, pixels.
    Returns:
        [B].
    """
    if margin == 0:
        return jnp.zeros(squares.shape[0], squares.dtype)
    middle = squares[:, margin:-margin]
    strips = (squares[:, :margin], squares[:, -margin:], middle[:, :, :margin], middle[:, :, -margin:])
    return jnp.sum(jnp.stack([jnp.mean(strip, axis=(1, 2, 3)) for strip in strips]), axis=0)


def _blur_bias(key: jax.Array) -> jax.Array:
    """The default bias of a torch convolution over 147 inputs, one value a channel (docs/papers/beyond_masking.md A4 d: official, drawn once)."""
    return jax.random.uniform(key, (3,), minval=-(147.0**-0.5), maxval=147.0**-0.5)
