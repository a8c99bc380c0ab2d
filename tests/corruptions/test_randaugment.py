"""RandAugment's ops against Pillow at several magnitudes, and the law of what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mim_jax.corruptions import randaugment as r

HEIGHT, WIDTH = 56, 40
MAGNITUDES = (0.0, 1.0, 2.5, 3.0, 5.0, 7.0, 8.37, 9.0, 10.0)
FILL, FILL_LEVELS = (0.5, 0.2, 0.1), (128, 51, 26)
ENHANCEMENTS = ("ContrastIncreasing", "BrightnessIncreasing", "ColorIncreasing", "SharpnessIncreasing")
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")

apply_op = jax.jit(r.apply_op)
rand_augment = jax.jit(r.rand_augment)
rand_augment_all = jax.jit(jax.vmap(r.rand_augment))


def pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([30 + 150 * x / WIDTH, 200 - 120 * y / HEIGHT, 40 + 1.5 * (x + y)], axis=-1)
    return {
        "random": rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8),
        "smooth": smooth.astype(np.uint8),
        "saturated": np.clip(rng.normal(200, 60, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8),
        "flat": np.full((HEIGHT, WIDTH, 3), (7, 90, 255), np.uint8),
    }


PICTURES = pictures()


def values(levels: np.ndarray) -> np.ndarray:
    return levels / np.float32(255)


def levels(image: jax.Array) -> np.ndarray:
    image = np.asarray(image) * 255
    assert np.abs(image - np.round(image)).max() < 1e-4
    return np.round(image).astype(int)


def ours(picture: np.ndarray, name: str, magnitude: float, sign: float) -> np.ndarray:
    return levels(apply_op(values(picture), r.OPS.index(name), magnitude, sign, jnp.asarray(FILL)))


def pillow(picture: np.ndarray, name: str, magnitude: float, sign: float) -> np.ndarray:
    image, share = Image.fromarray(picture), magnitude / 10
    factor = max(0.1, 1 + sign * share * 0.9)

    def affine(*matrix: float) -> Image.Image:
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL_LEVELS
        )

    def posterize() -> Image.Image:
        bits = 4 - int(share * 4)
        return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)

    def add() -> Image.Image:
        table = [min(255, level + int(share * 110)) if level < 128 else level for level in range(256)]
        return image.point(table * 3)

    results = {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "PosterizeIncreasing": posterize,
        "SolarizeIncreasing": lambda: ImageOps.solarize(image, 256 - int(share * 256)),
        "SolarizeAdd": add,
        "ContrastIncreasing": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "BrightnessIncreasing": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "ColorIncreasing": lambda: ImageEnhance.Color(image).enhance(factor),
        "SharpnessIncreasing": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "Rotate": lambda: image.rotate(sign * 30 * share, Image.Resampling.BILINEAR, fillcolor=FILL_LEVELS),
        "ShearX": lambda: affine(1, sign * 0.3 * share, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, sign * 0.3 * share, 1, 0),
        "TranslateXRel": lambda: affine(1, 0, sign * 0.45 * share * WIDTH, 0, 1, 0),
        "TranslateYRel": lambda: affine(1, 0, 0, 0, 1, sign * 0.45 * share * HEIGHT),
    }
    assert set(results) == set(r.OPS)
    return np.asarray(results[name]()).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", r.OPS)
def test_every_op_is_pillows(name: str, picture: str) -> None:
    """Exact for lookups; one level for blends and warps, and few pixels of them."""
    for magnitude in MAGNITUDES:
        for sign in (-1.0, 1.0):
            off = np.abs(
                ours(PICTURES[picture], name, magnitude, sign)
                - pillow(PICTURES[picture], name, magnitude, sign)
            )
            if name in ENHANCEMENTS or name in WARPS:
                assert off.max() <= 1, (magnitude, sign)
            else:
                assert off.max() == 0, (magnitude, sign)


def test_autocontrast_is_pillows_for_every_range_of_levels() -> None:
    """Pillow's doubles fall short of a whole level for 12094 of the triples (lowest, highest, level)."""
    ends = np.random.default_rng(1).integers(0, 256, (300, 2))
    tables = jax.jit(jax.vmap(r._autocontrast_table))(
        jnp.broadcast_to(jnp.asarray(ends, jnp.uint8)[:, :, None, None], (300, 2, 1, 3))
    )
    short = 0
    for (low, high), table in zip(np.sort(ends), np.asarray(tables), strict=True):
        every = np.arange(low, high + 1, dtype=np.uint8)
        expected = np.asarray(ImageOps.autocontrast(Image.fromarray(every[None]))).astype(int)[0]
        np.testing.assert_array_equal(table[:, low : high + 1], np.broadcast_to(expected, (3, len(every))))
        short += np.sum(expected < (every.astype(int) - low) * 255 // max(high - low, 1))
    assert short > 50  # the triples in question were among them


def test_equalize_leaves_what_pillow_leaves() -> None:
    """Too few pixels for a step, one level, and two: Pillow's three special cases."""
    rng = np.random.default_rng(2)
    few = rng.integers(0, 256, (5, 4, 3), np.uint8)
    two = np.where(rng.random((30, 30, 3)) < 0.3, 20, 220).astype(np.uint8)
    equalize = jax.jit(lambda picture: r._look_up(picture, r._equalize_table(picture)))
    for picture in (few, two, np.full((30, 30, 3), 9, np.uint8)):
        equalized = equalize(picture)
        np.testing.assert_array_equal(equalized, np.asarray(ImageOps.equalize(Image.fromarray(picture))))


@pytest.mark.parametrize("name", (*ENHANCEMENTS, *WARPS, "SolarizeIncreasing", "SolarizeAdd"))
def test_magnitude_zero_is_the_identity(name: str) -> None:
    for picture in PICTURES.values():
        np.testing.assert_array_equal(ours(picture, name, 0.0, -1.0), picture)


@pytest.mark.parametrize("name", WARPS)
def test_warps_fill_what_comes_from_outside(name: str) -> None:
    """A flat image stays flat where it is seen, exactly; the rest is the fill, on opposite sides for opposite signs."""
    filled = []
    for sign in (-1.0, 1.0):
        image = ours(PICTURES["flat"], name, 9.0, sign)
        outside = (image == FILL_LEVELS).all(axis=-1)
        assert ((image == PICTURES["flat"]).all(axis=-1) | outside).all()
        assert 0.02 < outside.mean() < 0.5
        filled.append(outside)
    assert (filled[0] != filled[1]).any()


# Draws ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_drawn() -> None:
    """Ops uniform, applied half the time, signs even, magnitudes N(9, 0.5) clipped to [0, 10]; all independent."""
    count = 20_000
    draw = lambda key: r.draw_ops(key, num_ops=2, magnitude=9.0, magnitude_std=0.5, probability=0.5)  # noqa: E731
    ops, magnitudes, signs, applied = (
        np.asarray(x) for x in jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), count))
    )
    pairs = np.bincount(ops[:, 0] * len(r.OPS) + ops[:, 1], minlength=len(r.OPS) ** 2)
    expected = count / len(pairs)
    chi_square, freedom = np.sum((pairs - expected) ** 2 / expected), len(pairs) - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)  # pairs uniform: drawn with replacement

    deviation = np.sqrt(0.25 / (2 * count))
    assert abs(applied.mean() - 0.5) < 4 * deviation
    assert set(np.unique(signs)) == {-1.0, 1.0} and abs((signs > 0).mean() - 0.5) < 4 * deviation
    assert abs(np.median(magnitudes) - 9) < 0.02 and magnitudes.max() == 10
    assert abs((magnitudes < 8.5).mean() - 0.1587) < 0.01
    assert abs((magnitudes == 10).mean() - 0.0228) < 0.005

    both = np.stack([ops[:, 0], magnitudes[:, 0], signs[:, 0], applied[:, 0], applied[:, 1]])
    assert np.abs(np.corrcoef(both) - np.eye(5)).max() < 4 / np.sqrt(count)


@pytest.mark.slow
def test_ops_come_one_after_the_other_where_applied() -> None:
    image = values(PICTURES["random"])
    first, skipped, last = (r.OPS.index(name) for name in ("Rotate", "Invert", "Equalize"))
    draws = (
        jnp.asarray([first, skipped, last]),
        jnp.asarray([9.0, 9.0, 9.0]),
        jnp.asarray([-1.0, 1.0, 1.0]),
        jnp.asarray([True, False, True]),
    )
    augment = jax.jit(r.augment_with)
    fill = jnp.asarray(FILL)
    expected = apply_op(apply_op(image, first, 9.0, -1.0, fill), last, 9.0, 1.0, fill)
    np.testing.assert_array_equal(augment(image, draws, fill), expected)

    between = np.random.default_rng(4).random(image.shape, np.float32)
    unchanged = augment(between, (*draws[:3], jnp.zeros(3, bool)), fill)
    assert unchanged.dtype == jnp.float32
    np.testing.assert_array_equal(
        levels(unchanged), np.round(between * 255)
    )  # to levels, also where nothing is done


@pytest.mark.slow
def test_keys_and_vmap() -> None:
    keys = jax.random.split(jax.random.key(5), 12)
    picture = PICTURES["random"]
    together = levels(rand_augment_all(keys, jnp.stack([values(picture)] * len(keys))))
    one_by_one = [levels(rand_augment(key, values(picture))) for key in keys]
    off = np.abs(together - np.stack(one_by_one))
    # A product fused into a sum may be truncated to the other level; an Equalize after it then moves whole levels.
    assert np.mean(off > 0) < 0.01
    np.testing.assert_array_equal(levels(rand_augment(keys[0], values(picture))), one_by_one[0])
    changed = [image.tobytes() for image in one_by_one if not np.array_equal(image, picture)]
    assert len(changed) > len(keys) / 2 and len(set(changed)) == len(changed)
