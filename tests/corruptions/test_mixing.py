"""Mixup, CutMix, label smoothing and Random Erasing against plain loops, and what they must keep."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.corruptions import mixing as m

BATCH, HEIGHT, WIDTH, CLASSES = 6, 12, 10, 5

mix = jax.jit(m.mix, static_argnames=("mixup_alpha", "cutmix_alpha"))
cutmix_box = jax.jit(m.cutmix_box, static_argnums=(1, 2))


@pytest.fixture
def batch() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(BATCH, HEIGHT, WIDTH, 3)), jnp.float32)
    return images, m.one_hot(jnp.asarray(rng.integers(0, CLASSES, BATCH)), CLASSES, 0.1)


def assert_mass_kept(targets: jax.Array) -> None:
    np.testing.assert_allclose(np.sum(targets, axis=-1), 1.0, atol=1e-6)


def box_pixels(box: m.Box, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    y0, y1, x0, x1 = (int(end) for end in box)
    inside = np.zeros((height, width), bool)
    for y in range(y0, y1):
        for x in range(x0, x1):
            inside[y, x] = True
    return inside


# Targets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_one_hot(smoothing: float) -> None:
    rows = jax.jit(m.one_hot, static_argnums=(1, 2))(jnp.asarray([2, -1, 0]), CLASSES, smoothing)
    off = smoothing / CLASSES
    expected = np.full((3, CLASSES), off)
    expected[0, 2] = expected[2, 0] = 1 - smoothing + off
    expected[1] = 0
    assert rows.dtype == jnp.float32
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


# Mixing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", (0.3, [0.0, 0.1, 0.5, 0.8, 0.9, 1.0]))
def test_mixup_is_the_loop(batch: tuple[jax.Array, jax.Array], lam: float | list[float]) -> None:
    images, targets = batch
    mixed, labels = jax.jit(m.mixup)(images, targets, jnp.asarray(lam))
    for i, own in enumerate(np.broadcast_to(lam, BATCH)):
        other = BATCH - 1 - i
        np.testing.assert_allclose(mixed[i], own * images[i] + (1 - own) * images[other], atol=1e-6)
        np.testing.assert_allclose(labels[i], own * targets[i] + (1 - own) * targets[other], atol=1e-6)
    assert_mass_kept(labels)


@pytest.mark.slow
def test_mixup_weights_are_beta() -> None:
    draw = jax.jit(jax.vmap(m.mixup_weights, in_axes=(0, None)))
    for alpha in (0.2, 0.8, 1.0):
        lam = np.asarray(draw(jax.random.split(jax.random.key(1), 4000), alpha))
        assert lam.min() >= 0 and lam.max() <= 1
        assert abs(lam.mean() - 0.5) < 0.03
        assert abs(lam.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


@pytest.mark.parametrize("lam", (0.0, 0.19, 0.51, 0.75, 0.99, 1.0))
def test_cutmix_box_is_the_rule(lam: float) -> None:
    """Every centre, also near the border where the box is cut; lam counts the pixels exactly."""
    at = jax.jit(m.cutmix_box_at, static_argnums=(1, 2))
    half_height, half_width = (int(side * math.sqrt(1 - lam)) // 2 for side in (HEIGHT, WIDTH))
    for y in range(HEIGHT):
        for x in range(0, WIDTH, 3):
            box, share = at(jnp.asarray([y, x]), HEIGHT, WIDTH, lam)
            assert all(end.dtype == jnp.int32 for end in box)
            assert tuple(int(end) for end in box) == (
                max(y - half_height, 0),
                min(y + half_height, HEIGHT),
                max(x - half_width, 0),
                min(x + half_width, WIDTH),
            )
            outside = np.sum(~box_pixels(box))
            assert round(float(share) * HEIGHT * WIDTH) == outside
            assert abs(share - outside / (HEIGHT * WIDTH)) < 1.2e-7  # XLA multiplies by 1 / (H W): a last bit


@pytest.mark.slow
def test_cutmix_boxes_centre_uniformly() -> None:
    """At lam = 1 the box is empty and lies at its centre."""
    keys = jax.random.split(jax.random.key(2), 6000)
    (y0, _, x0, _), _ = jax.jit(jax.vmap(lambda key: m.cutmix_box(key, HEIGHT, WIDTH, 1.0)))(keys)
    for centre, side in ((y0, HEIGHT), (x0, WIDTH)):
        counts, expected = np.bincount(centre, minlength=side), len(keys) / side
        assert len(counts) == side
        assert np.sum((counts - expected) ** 2 / expected) < side - 1 + 4 * np.sqrt(2 * (side - 1))


def test_cutmix_is_the_loop(batch: tuple[jax.Array, jax.Array]) -> None:
    images, targets = batch
    box, lam = cutmix_box(jax.random.key(3), HEIGHT, WIDTH, 0.4)
    mixed, labels = jax.jit(m.cutmix)(images, targets, box, lam)
    inside = box_pixels(box)
    assert inside.any()
    for i in range(BATCH):
        other = BATCH - 1 - i
        expected = np.array(images[i])
        expected[inside] = np.asarray(images[other])[inside]
        np.testing.assert_array_equal(mixed[i], expected)
        np.testing.assert_allclose(labels[i], lam * targets[i] + (1 - lam) * targets[other], atol=1e-6)
    assert_mass_kept(labels)


def test_weight_one_is_the_identity(batch: tuple[jax.Array, jax.Array]) -> None:
    images, targets = batch
    box, lam = cutmix_box(jax.random.key(4), HEIGHT, WIDTH, 1.0)
    assert lam == 1.0
    for mixed in (m.mixup(images, targets, 1.0), m.cutmix(images, targets, box, lam)):
        np.testing.assert_array_equal(mixed[0], images)
        np.testing.assert_array_equal(mixed[1], targets)


def kinds_of(images: jax.Array, mixed: np.ndarray) -> str:
    """Which rule made the batch, from its pixels."""
    own, other = np.asarray(images), np.asarray(images[::-1])
    if np.array_equal(mixed, own):
        return "none"
    return "cutmix" if ((mixed == own) | (mixed == other)).all() else "mixup"


@pytest.mark.slow
def test_mix_chooses(batch: tuple[jax.Array, jax.Array]) -> None:
    """Half CutMix, half mixup of the share that is mixed; label mass kept; images and labels tell the same story."""
    images, targets = batch
    keys, probability = jax.random.split(jax.random.key(5), 1000), 0.8
    mixed, labels = jax.jit(
        jax.vmap(
            lambda key: m.mix(
                key, images, targets, mixup_alpha=0.8, cutmix_alpha=1.0, probability=probability
            )
        )
    )(keys)
    assert_mass_kept(labels)
    kinds = np.array([kinds_of(images, one) for one in np.asarray(mixed)])
    # An empty box (lam near 1: about 1 in 30 of a uniform lam) leaves the batch as it is and counts as none.
    assert abs(np.mean(kinds == "mixup") - 0.4) < 0.06
    assert abs(np.mean(kinds == "cutmix") - 0.4) < 0.07

    # Targets are mixed by the weight of the pixels: regress one on the other.
    own, other = np.asarray(images), np.asarray(images[::-1])
    difference = (own - other).reshape(-1)
    for index in range(60):
        if kinds[index] == "cutmix":
            lam = np.mean(np.asarray(mixed[index]) == own)
        else:
            away = (np.asarray(mixed[index]) - other).reshape(-1)
            lam = away @ difference / (difference @ difference)
        np.testing.assert_allclose(labels[index], lam * targets + (1 - lam) * targets[::-1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alphas", "switch", "expected"),
    [((0.8, 0.0), 1.0, {"mixup"}), ((0.0, 1.0), 0.0, {"cutmix", "none"}), ((0.0, 0.0), 0.5, {"none"})],
)
def test_an_alpha_of_zero_turns_a_rule_off(
    batch: tuple[jax.Array, jax.Array], alphas: tuple[float, float], switch: float, expected: set[str]
) -> None:
    images, targets = batch
    kinds = set()
    for seed in range(8):
        mixed, labels = mix(
            jax.random.key(seed),
            images,
            targets,
            mixup_alpha=alphas[0],
            cutmix_alpha=alphas[1],
            switch=switch,
        )
        assert_mass_kept(labels)
        kinds.add(kinds_of(images, np.asarray(mixed)))
    assert kinds <= expected and kinds != {"none"} - expected


@pytest.mark.slow
def test_mix_by_key(batch: tuple[jax.Array, jax.Array]) -> None:
    def run(seed: int) -> np.ndarray:
        return np.asarray(mix(jax.random.key(seed), *batch, mixup_alpha=0.8, cutmix_alpha=1.0)[0])

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))


# Erasing -------------------------------------------------------------------------------------------------------------


def loop_box(
    draws: np.ndarray, height: int, width: int, area: tuple[float, float], aspect: float
) -> tuple[int, int, int, int]:
    for for_area, for_ratio, for_top, for_left in draws:
        target = (area[0] + for_area * (area[1] - area[0])) * height * width
        ratio = math.exp(math.log(aspect) + for_ratio * (math.log(1 / aspect) - math.log(aspect)))
        rows, columns = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if rows < height and columns < width:
            top, left = int(for_top * (height - rows + 1)), int(for_left * (width - columns + 1))
            return top, top + rows, left, left + columns
    return 0, 0, 0, 0


def test_erasing_boxes_are_the_loops() -> None:
    """A large area, so that some tries fail, and some draws all of them."""
    area, aspect, tries = (0.3, 1.2), 0.3, 3
    draws = np.random.default_rng(6).random((300, tries, 4), np.float32)
    boxes = jax.jit(jax.vmap(lambda d: m.erasing_box(d, 12, 17, area=area, aspect=aspect)))(draws)
    found = np.stack(boxes, axis=-1)
    expected = [loop_box(d.astype(float), 12, 17, area, aspect) for d in draws]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
    assert 0 < np.sum(found[:, 1] == 0) < 150


@pytest.mark.slow
def test_erasing_replaces_a_box_and_nothing_else() -> None:
    """Frequency, area and shape of what is erased; noise is N(0, 1)."""
    size, probability = (24, 20), 0.25
    image = jnp.full((*size, 3), 100.0)
    keys = jax.random.split(jax.random.key(7), 2000)
    erased = np.asarray(jax.jit(jax.vmap(lambda key: m.random_erasing(key, image)))(keys))
    changed = (erased != 100.0).any(axis=-1)
    hit = changed.any(axis=(1, 2))
    assert abs(hit.mean() - probability) < 4 * math.sqrt(probability * (1 - probability) / len(keys))

    sides = np.stack([changed.any(axis=2).sum(axis=1), changed.any(axis=1).sum(axis=1)], axis=-1)[hit]
    np.testing.assert_array_equal(changed[hit].sum(axis=(1, 2)), sides.prod(axis=-1))  # a full rectangle
    pixels = size[0] * size[1]
    assert ((sides + 0.5).prod(axis=-1) >= 0.02 * pixels).all()  # sides are rounded
    assert ((sides - 0.5).prod(axis=-1) <= pixels / 3).all()
    ratio = (sides[:, 0] - 0.5) / (sides[:, 1] + 0.5), (sides[:, 0] + 0.5) / (sides[:, 1] - 0.5)
    assert (ratio[0] <= 1 / 0.3).all() and (ratio[1] >= 0.3).all()

    noise = erased[changed]
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01


def test_erase_takes_the_noise_inside(batch: tuple[jax.Array, jax.Array]) -> None:
    image, noise = batch[0][0], batch[0][1]
    box = tuple(jnp.asarray(end) for end in (2, 7, 0, 4))
    erased, inside = np.asarray(m.erase(image, box, noise)), box_pixels(box)
    np.testing.assert_array_equal(erased[inside], np.asarray(noise)[inside])
    np.testing.assert_array_equal(erased[~inside], np.asarray(image)[~inside])


@pytest.mark.slow
def test_erasing_by_key_and_vmap(batch: tuple[jax.Array, jax.Array]) -> None:
    keys = jax.random.split(jax.random.key(8), BATCH)
    erasing = lambda key, image: m.random_erasing(key, image, probability=1.0)  # noqa: E731
    alone = jax.jit(erasing)
    together = np.asarray(jax.jit(jax.vmap(erasing))(keys, batch[0]))
    one_by_one = np.stack([alone(key, image) for key, image in zip(keys, batch[0], strict=True)])
    np.testing.assert_array_equal(together, one_by_one)
    assert (
        len({(image - own).tobytes() for image, own in zip(together, np.asarray(batch[0]), strict=True)})
        == BATCH
    )
    unchanged = m.random_erasing(keys[0], batch[0][0], probability=0.0)
    np.testing.assert_array_equal(unchanged, batch[0][0])
