"""What a method asks of the data, and the batch it gets.

THE BATCH is a dict of numpy arrays (after `place`, of jax arrays); B is the host's share of the global batch.

| key       | type               | meaning                                                               |
|-----------|--------------------|-----------------------------------------------------------------------|
| image     | uint8 [B, H, W, 3] | the view at `InputSpec.size`, RGB, cut and resized, not yet mirrored  |
| index     | int32 [B]          | position of the example in the source                                 |
| draw      | int32 [B]          | how often it was drawn before: its epoch; 0 in evaluation             |
| box       | float32 [B, 4]     | y0, x0, height, width of the crop, relative to the upright original   |
| flip      | bool [B]           | the device is to mirror the view left-right after the crop            |
| label     | int32 [B]          | -1 where there is none                                                |
| valid     | bool [B]           | false for the padding at the end of an evaluation                     |
| tokens    | int32 [B, L]       | only where `extras` asks: target ids, row-major                       |
| attention | float32 [B, g, g]  | only where `extras` asks: the map of the whole image                  |
| features  | float32 [B, D]     | only where `extras` asks: of the whole image, by a frozen network     |
| teacher   | uint8 [B, h, w, 3] | only with `InputSpec.teacher`: the same view at a tokenizer's size    |
| labels    | int8 [B, classes]  | only where `extras` asks: 1 shown, 0 not, -1 not to be counted        |

(index, draw) names one use of one example: two uses in one batch, where a batch exceeds the data set, differ
in draw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mim_jax.data.errors import DataError

Array = npt.NDArray[np.generic]
Batch = Mapping[str, Array]
Pixels = npt.NDArray[np.uint8]
Index = npt.NDArray[np.int64]

CROPS = ("random_resized", "centre_square", "resize_centre", "squash", "none")
RESAMPLES = ("bicubic", "bilinear", "lanczos")
EXTRAS = ("tokens", "attention", "features", "label", "labels")


@dataclass(frozen=True)
class InputSpec:
    """The view a method wants.

    size: (height, width) in pixels.
    crop: random_resized   torchvision's RandomResizedCrop, by `scale` (share of the area) and `ratio` (width / height)
          centre_square    the largest centred square, then resized
          resize_centre    short side to round(size / crop_fraction), then the centre (ImageNet's usual evaluation)
          squash           the whole picture, resized without regard to its shape
          none             the picture as it is; one of another size is an error
    flip: draw a mirror bit for each use of an example (the device mirrors).
    extras: names of optional batch keys, served by the loader's `extras` callables.
    resample: PIL's antialiased filter of that name.
    pixels: False = nothing is decoded, `image` is [B, 0, 0, 3] (what is learnt from lies in `extras`). Where they hold label
    or labels as well, the source is not read at all.
    teacher: (height, width) of the batch key `teacher`, made of the same box by `teacher_resample`; None = no such key.
    """

    size: tuple[int, int]
    crop: str
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_fraction: float = 0.875
    flip: bool = False
    extras: tuple[str, ...] = ()
    resample: str = "bicubic"
    pixels: bool = True
    teacher: tuple[int, int] | None = None
    teacher_resample: str = "bicubic"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise DataError(
                f"The input size {self.size} is not (height, width) with both at least 1 pixel: give two "
                "positive integers."
            )
        for field, value, known in (
            ("crop", self.crop, CROPS),
            ("resample", self.resample, RESAMPLES),
            ("teacher_resample", self.teacher_resample, RESAMPLES),
        ):
            if value not in known:
                raise DataError(
                    f"The input spec's {field} {value!r} is not known: use one of {', '.join(known)}."
                )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(
                f"The crop scale {self.scale} is not two rising shares of the area in (0, 1]: give for "
                "example (0.2, 1.0)."
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise DataError(
                f"The crop ratio {self.ratio} is not two rising positive width/height ratios: give for "
                "example (0.75, 1.333)."
            )
        if not 0 < self.crop_fraction <= 1:
            raise DataError(
                f"The crop fraction {self.crop_fraction} is not in (0, 1]: give for example 0.875."
            )
        if self.crop == "centre_square" and self.size[0] != self.size[1]:
            raise DataError(
                f"The crop centre_square cannot fill the non-square size {self.size}: use resize_centre or "
                "squash."
            )
        for extra in self.extras:
            if extra not in EXTRAS:
                raise DataError(f"The extra batch key {extra!r} is not known: use {' or '.join(EXTRAS)}.")
        if "tokens" in self.extras and (self.flip or self.crop == "random_resized"):
            raise DataError(
                "Cached token ids belong to one fixed, unflipped view, but the input spec has "
                f"crop={self.crop} and flip={self.flip}: "
                "use a fixed crop without flip, or compute the tokens during the run."
            )

    def for_teacher(self) -> "InputSpec":
        """The same view at the teacher's size."""
        assert self.teacher is not None
        return replace(self, size=self.teacher, resample=self.teacher_resample, teacher=None)
