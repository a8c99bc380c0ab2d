"""Boxes against torchvision's rule restated with its own control flow, geometry by hand, resampling against
PIL."""

import math

import numpy as np
import pytest
from PIL import Image

from mim_jax.data import DataError, ImageView, SecondSizeView, keys, make_crop
from mim_jax.data.crop import (
    Box,
    CentreSquare,
    ExampleKey,
    NoCrop,
    RandomResizedCrop,
    ResizeCentre,
    Squash,
    crop_and_resize,
    random_resized_box,
)
from mim_jax.data.examples import ArrayImage, Example

KEY = ExampleKey(seed=0, epoch=0, index=0)


class ScriptedRandom:
    """Stands in for torch's generator: uniform(a, b) and randint(0, n) from given numbers in [0, 1)."""

    def __init__(self, draws):
        self.draws = list(draws)

    def uniform(self, low, high):
        return low + (high - low) * self.draws.pop(0)

    def randint(self, stop):
        return math.floor(self.draws.pop(0) * stop)


def torchvision_get_params(tries, height, width, scale, ratio):
    """RandomResizedCrop.get_params as its documentation describes it; `tries` has one random source an
    attempt."""
    for random in tries:
        area = random.uniform(scale[0], scale[1]) * (height * width)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(height - h + 1), random.randint(width - w + 1), h, w
    shape = float(width) / float(height)
    if shape < min(ratio):
        w, h = width, round(width / min(ratio))
    elif shape > max(ratio):
        h, w = height, round(height * max(ratio))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


SIZES = [(375, 500), (500, 375), (1, 1), (8, 8), (1, 40), (40, 1), (20, 2000), (2000, 20), (224, 224), (3, 5)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0), (0.9, 1.0)])
def test_random_resized_is_torchvisions_rule(height, width, scale):
    ratio = (3 / 4, 4 / 3)
    for number in range(200):
        draws = keys.uniforms(40, number, "test")
        tries = [ScriptedRandom(draws[4 * k : 4 * k + 4]) for k in range(10)]
        expected = torchvision_get_params(tries, height, width, scale, ratio)
        assert tuple(random_resized_box(draws, height, width, scale, ratio)) == expected


def test_random_resized_reaches_the_fallback_and_all_corners():
    long = random_resized_box([0.999] * 40, 20, 2000, (0.9, 1.0), (3 / 4, 4 / 3))
    assert long == Box(0, (2000 - 27) // 2, 20, 27)
    boxes = np.array(
        [random_resized_box(keys.uniforms(40, n, "test"), 6, 6, (0.2, 0.5), (1, 1)) for n in range(400)]
    )
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 6).all()
    assert boxes[:, 0].min() == 0 and (boxes[:, 0] + boxes[:, 2]).max() == 6


def test_area_and_ratio_are_spread_as_asked():
    boxes = np.array(
        [
            random_resized_box(keys.uniforms(40, n, "test"), 1000, 1000, (0.2, 1.0), (3 / 4, 4 / 3))
            for n in range(3000)
        ]
    )
    share = boxes[:, 2] * boxes[:, 3] / 1e6
    # Above 3/4 of a square's area only log ratios up to -log(area) fit: integrated, the mean is 0.538, not
    # 0.6.
    assert abs(share.mean() - 0.538) < 0.01 and 0.199 < share.min() < 0.21
    log_ratio = np.log(boxes[:, 3] / boxes[:, 2])
    assert abs(log_ratio.mean()) < 0.01 and abs(log_ratio).max() <= math.log(4 / 3) + 0.01


def test_box_is_a_function_of_its_key():
    view = ImageView((8, 8), RandomResizedCrop(), flip=True)
    example = Example(ArrayImage(noise(20, 30)))

    def use(**change):
        key = {"seed": 1, "epoch": 2, "index": 3} | change
        flips = [view.render(example, ExampleKey(**(key | {"index": i})))["flip"] for i in range(64)]
        return view.crop.box(375, 500, (8, 8), ExampleKey(**key)), flips

    assert use() == use()
    for change in ({"seed": 2}, {"epoch": 3}, {"index": 4}):
        assert use()[0] != use(**change)[0]
    assert use()[1] != use(seed=2)[1] and use()[1] != use(epoch=3)[1]
    assert 16 < sum(use()[1]) < 48


def test_a_view_is_the_box_of_its_crop():
    """image, box and flip of a batch are of one crop; without flip nothing is mirrored, whatever the key."""
    pixels, crop = noise(20, 30), RandomResizedCrop()
    view = ImageView((8, 12), crop)
    for index in range(8):
        key = ExampleKey(seed=1, epoch=2, index=index)
        box = crop.box(20, 30, (8, 12), key)
        rendered = view.render(Example(ArrayImage(pixels)), key)
        np.testing.assert_array_equal(rendered["image"], crop_and_resize(pixels, box, (8, 12)))
        assert rendered["box"] == box.normalised(20, 30) and not rendered["flip"]


def test_centre_square_geometry():
    def box(height, width):
        return CentreSquare().box(height, width, (8, 8), KEY)

    assert box(375, 500) == Box(0, 62, 375, 375)  # Columns 62 to 437.
    assert box(500, 375) == Box(62, 0, 375, 375)
    assert box(7, 7) == Box(0, 0, 7, 7)
    assert box(1, 4) == Box(0, 1, 1, 1)
    assert Box(0, 62, 375, 375).normalised(375, 500) == (0.0, 62 / 500, 1.0, 375 / 500)


@pytest.mark.parametrize(
    "height, width, full, offset", [(375, 500, (256, 341), (16, 58)), (500, 375, (341, 256), (58, 16))]
)
def test_resize_centre_is_resize_then_centre_crop(height, width, full, offset):
    pixels = noise(height, width)
    crop, size = ResizeCentre(), (224, 224)
    box = crop.box(height, width, size, KEY)
    whole = np.asarray(Image.fromarray(pixels).resize(full[::-1], Image.Resampling.BICUBIC))
    top, left = offset
    rendered = crop.render(pixels, box, size, "bicubic")
    np.testing.assert_array_equal(rendered, whole[top : top + 224, left : left + 224])
    np.testing.assert_allclose(
        box.normalised(height, width), (top / full[0], left / full[1], 224 / full[0], 224 / full[1])
    )


def test_resize_centre_of_a_tiny_or_long_image_has_the_size():
    crop, size = ResizeCentre(), (24, 40)
    for height, width in ((1, 1), (3, 2000), (2000, 3), (24, 40)):
        box = crop.box(height, width, size, KEY)
        assert crop.render(noise(height, width), box, size, "bicubic").shape == (24, 40, 3)
        assert box.y0 >= 0 and box.x0 >= 0 and box.y0 + box.height <= height + 1e-9


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_crop_comes_before_the_resize(resample):
    pixels = noise(60, 80)
    got = crop_and_resize(pixels, Box(10, 20, 31, 37), (16, 24), resample)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    expected = Image.fromarray(pixels).crop((20, 10, 57, 41)).resize((24, 16), filters[resample])
    np.testing.assert_array_equal(got, np.asarray(expected))
    outside = pixels.copy()
    outside[:10], outside[41:], outside[:, :20], outside[:, 57:] = 0, 0, 255, 255
    np.testing.assert_array_equal(got, crop_and_resize(outside, Box(10, 20, 31, 37), (16, 24), resample))


def test_no_resize_is_a_copy():
    pixels = noise(40, 40)
    cut = crop_and_resize(pixels, Box(3, 4, 8, 9), (8, 9))
    np.testing.assert_array_equal(cut, pixels[3:11, 4:13])
    assert not np.shares_memory(cut, pixels)


def test_squash_and_none():
    assert Squash().box(30, 50, (8, 8), KEY) == Box(0, 0, 30, 50)
    assert NoCrop().box(30, 50, (30, 50), KEY) == Box(0, 0, 30, 50)
    with pytest.raises(DataError, match="Example 7 has 30 x 50 pixels"):
        NoCrop().box(30, 50, (8, 8), ExampleKey(seed=0, epoch=0, index=7))


@pytest.mark.parametrize(
    "crop",
    [RandomResizedCrop(), CentreSquare(), ResizeCentre(), Squash(), NoCrop()],
    ids=lambda crop: crop.name,
)
def test_a_second_size_shows_the_same_box(crop):
    pixels = noise(24, 24 if crop.name == "none" else 40)
    view = SecondSizeView(ImageView((24, 24), crop, flip=True), "small", (12, 12), "lanczos")
    assert view.keys["small"] == ((12, 12, 3), "uint8", None)
    key = ExampleKey(seed=1, epoch=2, index=3)
    rendered = view.render(Example(ArrayImage(pixels)), key)
    alone = view.image.render(Example(ArrayImage(pixels)), key)
    assert rendered.keys() == {*alone, "small"}
    np.testing.assert_array_equal(rendered["image"], alone["image"])
    box = crop.box(*pixels.shape[:2], (24, 24), key)
    np.testing.assert_array_equal(rendered["small"], crop.render(pixels, box, (12, 12), "lanczos"))


def view_of(size=(8, 8), crop="squash", resample="bicubic", scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)):
    return ImageView(size, make_crop(crop, scale, ratio), resample=resample)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: view_of(size=(0, 8)), "at least 1 pixel"),
        (lambda: view_of(crop="middle"), "random_resized, centre_square"),
        (lambda: view_of(resample="nearest"), "bicubic, bilinear"),
        (lambda: view_of(crop="random_resized", scale=(0.5, 0.2)), "scale"),
        (lambda: view_of(crop="random_resized", ratio=(0.0, 1.0)), "ratio"),
        (lambda: ResizeCentre(0.0), "crop fraction"),
        (lambda: view_of(size=(8, 9), crop="centre_square"), "non-square"),
        (lambda: SecondSizeView(view_of(), "teacher", (8, 0)), "at least 1 pixel"),
        (lambda: SecondSizeView(view_of(), "teacher", (8, 8), "nearest"), "bicubic, bilinear"),
        (lambda: SecondSizeView(view_of(crop="centre_square"), "teacher", (8, 9)), "non-square"),
    ],
)
def test_impossible_views_are_refused(make, says):
    with pytest.raises(DataError, match=says):
        make()


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
