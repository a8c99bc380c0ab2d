"""Zoom, canvas, fish-eye and the area resize: the anchors and invariants of docs/papers/beyond_masking.md A12 and A11, numpy and torch oracles."""

from functools import partial

import anchors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anchors import PRECISIONS, photographs, precision, tolerance

from mim_jax.corruptions import misalignment as m
from mim_jax.corruptions.masking import mask_from_noise
from mim_jax.targets.pixels import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    denormalise,
    normalise_patches,
    patchify,
    unpatchify,
)

SIZE, ZOOMED, SMALL, GRID = (224, 224), (288, 288), (160, 160), (14, 14)
OFFSETS = [(0, 0), (8, 8), (0, 8), (5, 3)]


distort = jax.jit(m.distort)
distort_all = jax.jit(jax.vmap(m.distort))
grids_of = jax.jit(jax.vmap(m.distortion_grid, in_axes=(0, 0, None)), static_argnums=2)
zoom_out = jax.jit(m.zoom_out, static_argnums=2)
draw_all = jax.jit(jax.vmap(m.draw_distortion))


def pn(images: jax.Array) -> jax.Array:
    return normalise_patches(patchify(denormalise(images, IMAGENET_MEAN, IMAGENET_STD), 16), "channel")


def canvases(images: jax.Array, offset: tuple[int, int], size: tuple[int, int] = SIZE) -> jax.Array:
    return jax.vmap(lambda x: m.zoom_out(x, jnp.asarray(offset), size))(images)


# Area resize -----------------------------------------------------------------------------------------------------------

RAMPS = {
    (224, 288): ([0, 0.5, 1.5, 2.5, 3, 3.5, 4.5, 5.5, 6, 7], [221.5, 222.5, 223]),
    (288, 224): ([0.5, 1.5, 2.5, 4, 5.5, 6.5, 7.5, 9.5], [284.5, 285.5, 286.5]),
    (224, 160): ([0.5, 1.5, 3, 4.5, 5.5, 7.5], [220, 221.5, 222.5]),
    (160, 224): ([0, 0.5, 1.5, 2, 2.5, 3.5], [157.5, 158.5, 159]),
}


@PRECISIONS
@pytest.mark.parametrize("sizes", RAMPS)
def test_resized_ramps_are_the_specs(sizes: tuple[int, int], dtype: str) -> None:
    have, want = sizes
    first, last = RAMPS[sizes]
    with precision(dtype):
        ramp = jnp.arange(have, dtype=dtype)
        rows = m.area_resize(jnp.broadcast_to(ramp[:, None, None], (have, 4, 1)), (want, 4))
        columns = m.area_resize(jnp.broadcast_to(ramp[None, :, None], (4, have, 1)), (4, want))
        assert rows.dtype == columns.dtype == dtype
        for out in (rows[:, 1, 0], columns[1, :, 0]):
            np.testing.assert_allclose(out[: len(first)], first, rtol=2e-7, atol=1e-7)
            np.testing.assert_allclose(out[-len(last) :], last, rtol=2e-7)


@PRECISIONS
def test_resized_anchor_sum(dtype: str) -> None:
    with precision(dtype):
        out = np.asarray(m.area_resize(jnp.asarray(anchors.image(288, dtype)), SIZE), np.float64)
    np.testing.assert_allclose(out.sum(), 30258.48609939, rtol=tolerance(dtype, 1e-6, 1e-12))


@pytest.mark.parametrize("sizes", [(224, 288), (288, 224), (7, 5), (5, 7), (3, 9), (1, 4)])
def test_area_matrix_invariants(sizes: tuple[int, int]) -> None:
    matrix = m.area_matrix(*sizes)
    assert matrix.dtype == np.float64 and matrix.shape == sizes[::-1] and not matrix.flags.writeable
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-15)
    np.testing.assert_array_equal(matrix, matrix[::-1, ::-1])  # commutes with flips


def test_area_matrix_windows_and_special_sizes() -> None:
    windows = {
        sizes: np.unique((m.area_matrix(*sizes) > 0).sum(axis=1), return_counts=True)
        for sizes in [(224, 288), (288, 224), (224, 160), (160, 224)]
    }
    found = {
        sizes: dict(zip(length.tolist(), count.tolist(), strict=True))
        for sizes, (length, count) in windows.items()
    }
    assert found == {
        (224, 288): {1: 96, 2: 192},
        (288, 224): {2: 192, 3: 32},
        (224, 160): {2: 128, 3: 32},
        (160, 224): {1: 96, 2: 128},
    }
    np.testing.assert_array_equal(m.area_matrix(6, 6), np.eye(6))
    np.testing.assert_array_equal(m.area_matrix(4, 8), np.repeat(np.eye(4), 2, axis=0))
    np.testing.assert_array_equal(m.area_matrix(8, 4), np.repeat(np.eye(4), 2, axis=0).T / 2)
    with pytest.raises(ValueError, match="at least 1 px"):
        m.area_matrix(4, 0)


def test_area_resize_of_batches_and_neutral_size() -> None:
    images = photographs(4, 12, 10).reshape(2, 2, 12, 10, 3)
    np.testing.assert_array_equal(m.area_resize(jnp.asarray(images), (12, 10)), images)
    out = m.area_resize(jnp.asarray(images), (9, 14))
    expected = np.einsum("oh,bahwc,pw->baopc", m.area_matrix(12, 9), images, m.area_matrix(10, 14))
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(m.area_resize(jnp.full((12, 10, 3), 0.7), (9, 14)), 0.7, rtol=3e-7)
    assert m.area_resize(jnp.zeros((4, 4, 3), jnp.bfloat16), (2, 2)).dtype == jnp.float32


# Zoom in ---------------------------------------------------------------------------------------------------------------


def test_zoom_in_is_the_centre_crop() -> None:
    images = photographs(2, 288, 288)
    np.testing.assert_array_equal(m.zoom_in(jnp.asarray(images), SIZE), images[:, 32:256, 32:256])
    np.testing.assert_array_equal(m.zoom_in(jnp.asarray(images), ZOOMED), images)
    np.testing.assert_array_equal(m.zoom_in(jnp.asarray(images[0]), (280, 288)), images[0, 4:284])
    for wrong in [(287, 288), (288, 290), (289, 288)]:
        with pytest.raises(ValueError, match="centre crop"):
            m.zoom_in(jnp.asarray(images), wrong)


@PRECISIONS
def test_zoom_in_targets_and_losses_are_the_specs(dtype: str) -> None:
    with precision(dtype):
        mask = mask_from_noise(jnp.asarray(anchors.noise()), 147)

        @jax.jit
        def terms(full: jax.Array, predicted: jax.Array) -> tuple[jax.Array, ...]:
            centre = pn(m.zoom_in(full, SIZE))
            outer = m.area_resize(unpatchify(pn(m.area_resize(full, SIZE)), GRID), ZOOMED)
            painted = m.area_resize(unpatchify(predicted, GRID), ZOOMED)
            per_patch = jnp.mean((patchify(m.zoom_in(painted, SIZE), 16) - centre) ** 2, axis=-1)
            error = (painted - outer) ** 2
            strips = (error[:, :32], error[:, 256:], error[:, 32:256, :32], error[:, 32:256, 256:])
            masked = jnp.sum(per_patch * mask) / jnp.sum(mask)
            return centre, outer, jnp.stack([jnp.mean(x) for x in strips]), masked, jnp.mean(per_patch)

        centre, outer, *found = terms(
            jnp.asarray(anchors.image(288, dtype)), jnp.asarray(anchors.prediction(dtype))
        )
        edges, masked, everywhere = (np.asarray(value, np.float64) for value in found)
    tokens, loss = tolerance(dtype, 1e-4), tolerance(dtype, 1e-5, 1e-11)
    np.testing.assert_allclose(centre[0, 0, :3], [2.05799666, 1.15235353, -2.19435106], atol=tokens)
    np.testing.assert_allclose(outer[0, 0, 0], [-1.6474293, -2.03299682, -1.36310137], atol=tokens)
    np.testing.assert_allclose(
        edges, [1.00112745, 0.99600697, 1.02933468, 1.07725001], atol=tolerance(dtype, 1e-5)
    )
    assert masked == pytest.approx(1.107045173800, rel=loss)
    assert everywhere == pytest.approx(1.107320748821, rel=loss)
    assert sum(edges) == pytest.approx(4.103719104865, rel=loss)
    assert 0.8 * masked + 0.2 * sum(edges) == pytest.approx(1.706379960013, rel=loss)
    # The two terms of docs/papers/beyond_masking.md A12 add up to ...420030; its total is printed 4e-11 lower.
    assert 0.8 * everywhere + 0.2 * sum(edges) == pytest.approx(1.706600419989, rel=max(loss, 1e-10))


# Zoom out --------------------------------------------------------------------------------------------------------------


@PRECISIONS
def test_zoom_out_canvas_is_the_specs(dtype: str) -> None:
    with precision(dtype):
        out = np.asarray(canvases(jnp.asarray(anchors.image(160, dtype)), (41, 20)))
    assert out.dtype == dtype
    atol = tolerance(dtype, 2e-6)
    np.testing.assert_allclose(out.sum(dtype=np.float64), 27608.45507087, rtol=tolerance(dtype, 1e-6, 1e-12))
    np.testing.assert_allclose(out[0, 0, 0], [0.28125135, 0.40392151, 0.24716763], atol=atol)
    np.testing.assert_allclose(out[1, 100, 3], [-0.67371703, -0.78928376, -0.30010757], atol=atol)


ZOOM_OUT_LOSSES = {  # (left, top): loss with mask == 1
    (20, 41): 0.915910065748,
    (0, 0): 0.921325866700,
    (63, 63): 0.920947689765,
    (0, 63): 0.919028864879,
    (32, 32): 0.916784261246,
}


@pytest.mark.slow
@PRECISIONS
def test_zoom_out_losses_are_the_specs(dtype: str) -> None:
    with precision(dtype):
        small, predicted = jnp.asarray(anchors.image(160, dtype)), jnp.asarray(anchors.prediction(dtype))
        mask = mask_from_noise(jnp.asarray(anchors.noise()), 147)
        target = m.area_resize(unpatchify(pn(m.area_resize(small, SIZE)), GRID), SMALL)
        painted = m.area_resize(unpatchify(predicted, GRID), SMALL)

        @jax.jit
        def error(offset: jax.Array) -> jax.Array:
            def canvas(x: jax.Array) -> jax.Array:
                return patchify(jax.vmap(lambda one: m.zoom_out(one, offset, SIZE))(x), 16)

            return jnp.mean((canvas(painted) - canvas(target)) ** 2, axis=-1)

        found = {place: error(jnp.asarray(place[::-1])) for place in ZOOM_OUT_LOSSES}
        with_mask = float(jnp.sum(found[20, 41] * mask) / jnp.sum(mask))
        plain = {place: float(jnp.mean(value)) for place, value in found.items()}
    rel = tolerance(dtype, 1e-5, 1e-11)
    assert plain == pytest.approx(ZOOM_OUT_LOSSES, rel=rel)
    assert with_mask == pytest.approx(0.916260374400, rel=rel)


@pytest.mark.parametrize("offset", OFFSETS)
def test_zoom_out_is_numpys_symmetric_padding(offset: tuple[int, int]) -> None:
    image = photographs(1, 12, 9)[0]
    top, left = offset
    padded = np.pad(image, ((top, 8 - top), (left, 8 - left), (0, 0)), mode="symmetric")
    out = np.asarray(zoom_out(image, jnp.asarray(offset), (20, 17)))
    np.testing.assert_array_equal(out, padded)
    np.testing.assert_array_equal(out[top : top + 12, left : left + 9], image)
    mirrored = zoom_out(image[:, ::-1], jnp.asarray([top, 8 - left]), (20, 17))
    np.testing.assert_array_equal(mirrored, out[:, ::-1])
    assert set(out.ravel()) == set(image.ravel())


def test_zoom_out_neutral_full_mirror_and_errors() -> None:
    image = photographs(1, 6, 6)[0]
    np.testing.assert_array_equal(zoom_out(image, jnp.zeros(2, jnp.int32), (6, 6)), image)
    full = np.pad(image, ((6, 0), (0, 6), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(zoom_out(image, jnp.asarray([6, 0]), (12, 12)), full)
    for wrong in [(13, 12), (12, 13), (5, 6)]:
        with pytest.raises(ValueError, match="canvas"):
            m.zoom_out(jnp.asarray(image), jnp.zeros(2, jnp.int32), wrong)


def test_zoom_out_gradient_counts_how_often_a_pixel_appears() -> None:
    top, left = 41, 20
    grad = jax.grad(lambda x: m.zoom_out(x, jnp.asarray([top, left]), SIZE).sum())(jnp.zeros((160, 160, 1)))
    place = np.arange(160)
    rows = 1 + (place < top) + (place >= 96 + top)
    columns = 1 + (place < left) + (place >= 96 + left)
    np.testing.assert_array_equal(grad[..., 0], rows[:, None] * columns)
    assert grad.sum() == 50176


def test_offsets_are_uniform_and_exclude_the_margin() -> None:
    keys = jax.random.split(jax.random.key(0), 4000)
    offsets = np.asarray(jax.jit(jax.vmap(lambda key: m.draw_offset(key, (8, 4))))(keys))
    assert offsets.dtype == np.int32
    for axis, margin in enumerate((8, 4)):
        counts = np.bincount(offsets[:, axis])
        assert len(counts) == margin and np.abs(counts / 4000 - 1 / margin).max() < 0.03
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.06
    assert m.draw_offset(keys[0], (0, 64)).tolist()[0] == 0


# Fish-eye --------------------------------------------------------------------------------------------------------------

FISH_EYES = [  # centre, strength, sum of the image
    ((0.5, -0.3), 0.2, 16180.30804727),
    ((0.0, 0.0), 0.2, 14386.96649870),
    ((-1.0, -1.0), 0.25, -1174.25424740),
]


@PRECISIONS
def test_fish_eye_is_the_specs(dtype: str) -> None:
    with precision(dtype):
        image = jnp.asarray(anchors.image(224, dtype)[0])
        draws = [(jnp.asarray(centre, dtype), jnp.asarray(k, dtype)) for centre, k, _ in FISH_EYES]
        grids = [np.asarray(m.distortion_grid(*draw, SIZE)) for draw in draws]
        outs = [np.asarray(jax.jit(m.distort)(image, *draw)) for draw in draws]
    assert grids[0].dtype == outs[0].dtype == dtype
    atol = tolerance(dtype, 1e-6, 1e-9)
    np.testing.assert_allclose(grids[0][0, 0], [-0.50341164, -0.768258765], atol=max(atol, 6e-9))
    np.testing.assert_allclose(grids[0][100, 50], [-0.326567768, -0.145260874], atol=atol)
    assert [grids[1].min(), grids[1].max()] == pytest.approx([-0.799998, 0.799998], abs=1e-6)
    assert [grids[2].min(), grids[2].max()] == pytest.approx([-1, 0], abs=1e-6)
    image_atol = tolerance(dtype, 2e-5)
    np.testing.assert_allclose(outs[0][100, 50], [0.59569304, -0.83886013, 1.08422579], atol=image_atol)
    for out, (_, _, total) in zip(outs, FISH_EYES, strict=True):
        assert out.sum(dtype=np.float64) == pytest.approx(total, abs=tolerance(dtype, 0.05))


def fish_eyes(count: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    return draw_all(jax.random.split(jax.random.key(seed), count))


def sampled(image: np.ndarray, centre: np.ndarray, strength: float) -> np.ndarray:
    """The formula in loops over pixels, float64."""
    height, width, _ = image.shape
    out = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            g = np.array([2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1])
            x, y = (g + strength * np.hypot(*(centre - g)) * (centre - g) + 1) / 2 * (width - 1, height - 1)
            for near_y in (int(y), min(int(y) + 1, height - 1)):
                for near_x in (int(x), min(int(x) + 1, width - 1)):
                    weight = max(0, 1 - abs(y - near_y)) * max(0, 1 - abs(x - near_x))
                    out[row, column] += weight * image[near_y, near_x]
    return out


def test_fish_eye_follows_the_formula_on_an_oblong_image() -> None:
    images, (centres, strengths) = photographs(3, 9, 13), fish_eyes(3)
    out = distort_all(images, centres, strengths)
    for image, centre, strength, got in zip(images, centres, strengths, out, strict=True):
        expected = sampled(image.astype(np.float64), np.asarray(centre, np.float64), float(strength))
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.slow
def test_fish_eye_neutral_fixed_point_and_bounds() -> None:
    images, (centres, strengths) = photographs(64, 32, 32), fish_eyes(64)
    np.testing.assert_array_equal(distort_all(images, centres, np.zeros(64, np.float32)), images)
    grids = np.asarray(grids_of(centres, strengths, (32, 32)))
    assert np.abs(grids).max() <= 1.0 + 1e-6
    reach = np.linalg.norm(grids - np.asarray(centres)[:, None, None], axis=-1)
    assert (reach <= 1 / (4 * np.asarray(strengths))[:, None, None] + 1e-6).all()
    out = np.asarray(distort_all(images, centres, strengths))
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    assert (out >= low - 1e-5).all() and (out <= high + 1e-5).all()
    assert np.abs(out - images).mean() > 0.5  # and it does something
    flat = distort(jnp.full((32, 32, 3), 0.7), centres[0], strengths[0])
    np.testing.assert_allclose(flat, 0.7, rtol=1e-6)
    centre = jnp.asarray([0.5, -0.25])  # on the pixel (6, 12) of 17 x 17
    np.testing.assert_array_equal(m.distortion_grid(centre, jnp.asarray(0.2), (17, 17))[6, 12], centre)
    corner = m.distort(
        jnp.asarray(images[0]), jnp.asarray([1.0, 1.0]), jnp.asarray(0.25)
    )  # high index clipped at the edge
    np.testing.assert_allclose(corner[-1, -1], images[0, -1, -1], atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_fish_eye_commutes_with_flips(axis: int) -> None:
    image, (centres, strengths) = photographs(1, 20, 24)[0], fish_eyes(1)
    turned = np.asarray(centres[0]) * ([1, -1] if axis == 0 else [-1, 1])  # x is the second axis of the image
    out = distort(np.flip(image, axis), turned.astype(np.float32), strengths[0])
    np.testing.assert_allclose(
        out, np.flip(distort(image, centres[0], strengths[0]), axis), rtol=0, atol=5e-5
    )


def test_drawn_fish_eyes_fill_their_ranges() -> None:
    centres, strengths = (np.asarray(value) for value in fish_eyes(4000))
    assert centres.shape == (4000, 2) and strengths.shape == (4000,)
    assert centres.min() >= -1 and centres.max() <= 1 and strengths.min() >= 0.15 and strengths.max() <= 0.25
    np.testing.assert_allclose(centres.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(centres.std(axis=0), 1 / np.sqrt(3), atol=0.02)
    assert strengths.mean() == pytest.approx(0.2, abs=0.003)
    assert np.abs(np.corrcoef(np.column_stack([centres, strengths]).T) - np.eye(3)).max() < 0.06


# All of them -----------------------------------------------------------------------------------------------------------


def zoom_in_task(key: jax.Array, image: jax.Array) -> jax.Array:
    return m.area_resize(m.zoom_in(image, (18, 18)), (24, 24))


def zoom_out_task(key: jax.Array, image: jax.Array) -> jax.Array:
    return m.zoom_out(image, m.draw_offset(key, (12, 12)), (36, 36))


def distort_task(key: jax.Array, image: jax.Array) -> jax.Array:
    return m.distort(image, *m.draw_distortion(key))


TASKS = pytest.mark.parametrize("task", [zoom_in_task, zoom_out_task, distort_task])


@pytest.mark.slow
@TASKS
def test_keys_batches_jit_and_devices(task: "partial[jax.Array]") -> None:
    images, keys = photographs(16, 24, 24), jax.random.split(jax.random.key(3), 16)
    rounding = 1e-5 if task is distort_task else 1e-6  # noise is steep: 1e-6 px are 5e-6 of a value
    batched = jax.jit(jax.vmap(task))
    out = np.asarray(batched(keys, images))
    np.testing.assert_array_equal(out, batched(keys, images))
    np.testing.assert_allclose(task(keys[5], jnp.asarray(images[5])), out[5], rtol=0, atol=rounding)
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(batched(keys[order], images[order]), out[order])
    spread, collectives = anchors.on_eight_devices(batched, keys, images)
    np.testing.assert_allclose(spread, out, rtol=0, atol=0 if task is zoom_out_task else rounding)
    assert collectives == []
    same = np.asarray(batched(keys, np.broadcast_to(images[:1], images.shape)))
    distinct = len({one.tobytes() for one in same})
    assert distinct == 1 if task is zoom_in_task else distinct >= 14


@TASKS
def test_gradients_are_finite(task: "partial[jax.Array]") -> None:
    image, key = jnp.asarray(photographs(1, 24, 24)[0]), jax.random.key(1)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(task(key, x) ** 2)))(image)
    assert np.isfinite(grad).all() and np.abs(grad).sum() > 0


def test_fish_eye_gradients_are_finite_where_the_centre_is_a_pixel() -> None:
    image = jnp.asarray(photographs(1, 17, 17)[0])
    grads = jax.jit(jax.grad(lambda *a: jnp.sum(m.distort(*a) ** 2), argnums=(0, 1, 2)))(
        image, jnp.zeros(2), jnp.asarray(0.2)
    )
    assert all(np.isfinite(grad).all() and np.abs(grad).sum() > 0 for grad in grads)


@pytest.mark.parametrize("sizes", [((28, 36), (36, 28)), ((20, 11), (7, 30)), ((16, 16), (8, 32))])
def test_area_resize_is_torchs(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    torch = pytest.importorskip("torch", reason=anchors.TORCH)
    images = photographs(2, *sizes[0])
    expected = torch.nn.functional.interpolate(
        torch.tensor(images).permute(0, 3, 1, 2), size=sizes[1], mode="area"
    ).permute(0, 2, 3, 1)
    np.testing.assert_allclose(m.area_resize(jnp.asarray(images), sizes[1]), expected, atol=2e-6)


@pytest.mark.slow
def test_fish_eye_is_torchs_grid_sample() -> None:
    torch = pytest.importorskip("torch", reason=anchors.TORCH)
    images, (centres, strengths) = photographs(8, 30, 22), fish_eyes(8, seed=4)
    with precision("float64"):
        doubles = [jnp.asarray(np.asarray(value, np.float64)) for value in (images, centres, strengths)]
        grids = jax.vmap(lambda c, k: m.distortion_grid(c, k, (30, 22)))(*doubles[1:])
        out = jax.vmap(m.distort)(*doubles)
    expected = torch.nn.functional.grid_sample(
        torch.tensor(np.asarray(doubles[0])).permute(0, 3, 1, 2),
        torch.tensor(np.asarray(grids)),
        mode="bilinear",
        align_corners=True,
        padding_mode="border",
    ).permute(0, 2, 3, 1)
    np.testing.assert_allclose(out, expected, atol=1e-12)
