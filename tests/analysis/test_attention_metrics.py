"""Golden numbers (docs/papers/dark_secrets.md 3) and invariants (7.1-7.7) of the attention metrics."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import family, grid, log, log_softmax, numbers, random_log, uniform

from mim_jax.analysis.attention_metrics import (
    attention_distance,
    distances,
    diversity_ratio,
    entropy,
    entropy_range,
    global_share,
    head_kl,
    kl_from_cross_entropies,
    layer_divergence,
    local_share,
    log_from_weights,
    max_entropy,
    per_head_divergence,
    uniform_distance,
)
from mim_jax.models.encoder import AttentionGeometry
from mim_jax.models.windows import attention_geometry, plan_windows, token_places

UNIFORM = {
    2: (0.853553, 1.414214, 1.386294), 3: (1.453311, 2.828427, 2.197225), 4: (2.008015, 4.242641, 2.772589),
    6: (3.080317, 7.071068, 3.583519), 7: (3.609465, 8.485281, 3.891820), 8: (4.136483, 9.899495, 4.158883),
    12: (6.234558, 15.556349, 4.969813), 14: (7.280764, 18.384776, 5.278115), 16: (8.326075, 21.213203, 5.545177),
    24: (12.502999, 32.526912, 6.356108), 30: (15.633644, 41.012193, 6.802395),
}  # fmt: skip
BETAS = (0.0, 0.5, 1.0, 2.0, 4.0)
KL = [
    [0, 0.114841, 0.461635, 1.720404, 5.321282],
    [0.117348, 0, 0.114604, 0.908994, 3.581114],
    [0.451157, 0.109602, 0, 0.345978, 2.121272],
    [1.355418, 0.701303, 0.279142, 0, 0.525056],
    [2.454820, 1.597648, 0.972429, 0.287173, 0],
]
STAGES = {  # input side and windows -> uniform distance in pixels and log N of the four stages (docs/papers/dark_secrets.md 2.1)
    (192, (12, 12, 12, 6)): ((24.938, 49.876, 99.753, 98.570), (4.9698, 4.9698, 4.9698, 3.5835)),
    (224, (14, 14, 14, 7)): ((29.123, 58.246, 116.492, 115.503), (5.2781, 5.2781, 5.2781, 3.8918)),
    (256, (16, 16, 16, 8)): ((33.304, 66.609, 133.217, 132.367), (5.5452, 5.5452, 5.5452, 4.1589)),
    (256, (8, 8, 8, 8)): ((16.546, 33.092, 66.184, 132.367), (4.1589, 4.1589, 4.1589, 4.1589)),
    (480, (30, 30, 30, 15)): ((62.535, 125.069, 250.138, 249.712), (6.8024, 6.8024, 6.8024, 5.4161)),
    (352, (22, 22, 22, 11)): ((45.837, 91.673, 183.347, 182.751), (6.1821, 6.1821, 6.1821, 4.7958)),
}
DIGITS = 6e-7


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("side", UNIFORM)
def test_even_attention(side: int) -> None:
    mean, most, size = UNIFORM[side]
    where = grid(side)
    assert uniform_distance(where) == pytest.approx(mean, abs=DIGITS)
    assert distances(where).max() == pytest.approx(most, abs=DIGITS)
    assert max_entropy(where) == pytest.approx(size, abs=DIGITS)
    if side in (3, 14):  # the maps of all sizes would only take time
        found = numbers(uniform(side), where)
        assert found.drop[0, 0] == pytest.approx(mean, abs=DIGITS)
        assert found.entropy[0, 0] == pytest.approx(size, abs=DIGITS)


def test_a_vit_of_224_pixels() -> None:
    where = grid(14, pixels=16.0)
    assert uniform_distance(where) == pytest.approx(116.4922, abs=5e-5)
    assert distances(where, "patch")[0].mean() == pytest.approx(10.064385, abs=DIGITS)
    assert distances(where, "patch")[0].max() == pytest.approx(18.384776, abs=DIGITS)
    assert uniform_distance(where, "unit") == pytest.approx(7.280764 / 13, abs=DIGITS)
    big = 400
    along = np.arange(big)
    # the mean over a large grid, from the numbers of pairs at each offset
    pairs = (big - along) * np.where(along, 2.0, 1.0)
    mean = (np.sqrt(along[:, None] ** 2 + along**2) * np.outer(pairs, pairs)).sum() / big**4
    assert mean / big == pytest.approx((2 + 2**0.5 + 5 * np.arcsinh(1)) / 15, abs=1e-4)
    with pytest.raises(ValueError, match="units are px, patch, unit"):
        distances(where, "metres")


def test_identity_and_one_hot() -> None:
    where, tokens = grid(14), np.arange(196)
    right = np.where(tokens % 14 < 13, tokens + 1, tokens)
    targets = (tokens, right, np.full(196, 195))
    found = numbers(log(np.stack([np.eye(196)[target] for target in targets])), where)
    np.testing.assert_allclose(found.drop[0], [0, 13 / 14, 10.064385], atol=DIGITS)
    np.testing.assert_array_equal(found.entropy[0], 0)
    assert distances(where)[0, 195] == pytest.approx(18.384776, abs=DIGITS)


def test_cls_is_dropped_or_the_rest_renormalised() -> None:
    where, nothing_left = grid(2, prefix=1), np.eye(5)[[0] * 5]  # all patches attend to CLS alone
    found = numbers(log(np.stack([np.full((5, 5), 0.2), nothing_left])), where)
    np.testing.assert_allclose(found.drop[0], [0.682843, 0], atol=DIGITS)
    np.testing.assert_allclose(found.renorm[0], [0.853553, 0], atol=DIGITS)
    np.testing.assert_allclose(found.entropy[0], [1.609438, 0], atol=DIGITS)
    np.testing.assert_allclose(found.entropy_patch[0], [np.log(4), 0])
    assert max_entropy(where) == pytest.approx(1.609438, abs=DIGITS)
    assert max_entropy(where, "patch_renorm") == pytest.approx(np.log(4))
    assert max_entropy(grid(14, prefix=1)) == pytest.approx(5.283204, abs=DIGITS)
    assert max_entropy(grid(14, prefix=1), "patch_renorm") == pytest.approx(5.278115, abs=DIGITS)
    even = jnp.asarray(uniform(2))
    for wrong in (lambda: attention_distance(even, where, cls="keep"), lambda: entropy(even, where, keys="")):
        with pytest.raises(ValueError, match="not"):
            wrong()


def test_what_cls_asks_counts_for_nothing() -> None:
    where, maps = grid(3, 4, pixels=2.0, prefix=1), random_log(0, 4, 1, 3, 13)
    other = maps.copy()
    other[:, :, :, 0] = log_softmax(100.0 * maps[:, :, :, 0])
    for ours, theirs in zip(numbers(maps, where), numbers(other, where), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)


def test_the_beta_family() -> None:
    where, maps = grid(4), family(4, BETAS)
    found = numbers(maps, where)
    np.testing.assert_allclose(found.drop[0], [2.008015, 1.543636, 1.095223, 0.470104, 0.063989], atol=DIGITS)
    np.testing.assert_allclose(
        found.entropy[0], [2.772589, 2.655240, 2.321432, 1.417171, 0.317769], atol=DIGITS
    )
    kl = found.kl[0]
    np.testing.assert_allclose(kl, KL, atol=DIGITS)
    assert layer_divergence(kl) == pytest.approx(1.177061, abs=DIGITS)
    np.testing.assert_allclose(
        per_head_divergence(kl), [1.904541, 1.180515, 0.757002, 0.715230, 1.328018], atol=DIGITS
    )
    np.testing.assert_allclose(
        per_head_divergence(kl, first=False), [1.094686, 0.630849, 0.456952, 0.815637, 2.887181], atol=DIGITS
    )
    assert kl.mean() == pytest.approx(0.941649, abs=DIGITS)
    mean_query = np.log(np.exp(maps).mean(axis=3, keepdims=True))
    of_means = numbers(np.broadcast_to(mean_query, maps.shape), where).kl[0]
    assert layer_divergence(of_means) == pytest.approx(0.002629, abs=DIGITS)
    assert layer_divergence(found.shannon[0]) == pytest.approx(0.191546, abs=DIGITS)
    # KL to uniform is log N less the entropy
    np.testing.assert_allclose(kl[:, 0], np.log(16) - found.entropy[0], atol=1e-12)
    assert kl[1, 0] == pytest.approx(0.117349, abs=2e-6)


def test_entropy_is_taken_before_the_mean() -> None:
    maps = np.concatenate([log(np.eye(16)), uniform(4)])
    assert numbers(maps, grid(4)).entropy.mean() == pytest.approx(1.386294, abs=DIGITS)
    mean_map = np.log(np.exp(maps).mean(axis=0, keepdims=True))
    assert numbers(mean_map, grid(4)).entropy[0, 0] == pytest.approx(1.960591, abs=DIGITS)


@pytest.mark.slow
def test_layers_like_a_mims_and_like_a_supervised_networks() -> None:
    where = grid(7)
    supervised = family(7, (0.05, 0.06, 0.07, 0.08))
    mim, flat = numbers(family(7, (0.1, 0.5, 1.0, 2.0)), where), numbers(supervised, where)
    np.testing.assert_allclose(mim.drop[0], [3.341494, 2.323854, 1.430859, 0.565298], atol=DIGITS)
    np.testing.assert_allclose(mim.entropy[0], [3.878389, 3.579063, 2.928483, 1.696260], atol=DIGITS)
    np.testing.assert_allclose(flat.drop[0], [3.475965, 3.449123, 3.422249, 3.395348], atol=DIGITS)
    np.testing.assert_allclose(flat.entropy[0], [3.888477, 3.887001, 3.885254, 3.883236], atol=DIGITS)
    kl, small = float(layer_divergence(mim.kl[0])), float(layer_divergence(flat.kl[0]))
    assert kl == pytest.approx(0.945941, abs=DIGITS) and small == pytest.approx(0.000448, abs=DIGITS)
    assert diversity_ratio([kl] * 9 + [small] * 3) == pytest.approx(4.73e-4, abs=1e-6)
    assert diversity_ratio([kl] * 12) == pytest.approx(1.0)
    assert np.isnan(diversity_ratio([kl] * 3)) and np.isnan(diversity_ratio([0.0] * 12))
    even = uniform_distance(where)
    assert (local_share(mim.drop[0], even), global_share(mim.drop[0], even)) == (0.5, 0.25)
    assert (local_share(flat.drop[0], even), global_share(flat.drop[0], even)) == (0.0, 1.0)
    assert entropy_range(mim.entropy[0]) == pytest.approx(3.878389 - 1.696260, abs=2e-6)
    with jax.enable_x64(False):  # in float32 the small one is right to 1e-5
        assert float(layer_divergence(numbers(supervised, where).kl[0])) == pytest.approx(0.000448, abs=1e-5)


def test_even_attention_in_the_stages_of_swins() -> None:
    for (side, windows), (far, sizes) in STAGES.items():
        for stage, window in enumerate(windows):
            # one of the equal windows says it all
            where = AttentionGeometry(grid(window).coordinates, 4.0 * 2**stage)
            assert uniform_distance(where) == pytest.approx(far[stage], abs=5.1e-4), (side, window)
            assert max_entropy(where) == pytest.approx(sizes[stage], abs=5.1e-5)


def regional(maps: np.ndarray, where: AttentionGeometry, mask: float = -100.0) -> np.ndarray:
    """The maps under a shift mask."""
    assert where.regions is not None
    other = where.regions[:, None, :, None] != where.regions[:, None, None, :]
    return log_softmax(maps + np.where(other, mask, 0.0))


@pytest.mark.slow
def test_shifted_windows_leave_other_regions_out() -> None:
    where = attention_geometry(plan_windows((8, 8), 4, shifted=True), 3.0)
    ignored = AttentionGeometry(where.coordinates, 3.0, windows=4)
    assert where.regions is not None
    same = where.regions[:, :, None] == where.regions[:, None, :]
    assert sorted(same.sum(axis=(1, 2))) == [64, 128, 128, 256]
    sizes = {int(size) for rows in same.sum(axis=-1) for size in rows}
    assert sizes == {16, 8, 4}
    even = regional(np.zeros((1, 4, 2, 16, 16)), where)
    np.testing.assert_allclose(numbers(even, where).entropy, 2.079442, atol=DIGITS)
    assert max_entropy(where) == pytest.approx(2.079442, abs=DIGITS)
    everywhere = numbers(np.full((1, 4, 2, 16, 16), -np.log(16)), ignored)
    np.testing.assert_allclose(everywhere.entropy, 2.772589, atol=DIGITS)
    # a mask of -100 and one of minus infinity say the same; a weight that got over a mask is left out by its label
    maps = random_log(1, 1, 4, 2, 16)
    soft, hard = (numbers(regional(maps, where, mask), where) for mask in (-100.0, -np.inf))
    for ours, theirs in zip(soft, hard, strict=True):
        assert np.isfinite(theirs).all()
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert (
        np.exp(regional(np.clip(maps, -10, 10), where))[np.broadcast_to(~same[:, None], maps.shape)].max()
        < 1e-27
    )
    assert (numbers(maps, where).drop < numbers(maps, ignored).drop).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "shifted"), [((8, 8), True), ((8, 8), False), ((6, 9), False), ((6, 9), True)]
)
def test_windows_on_the_whole_image_say_the_same(size: tuple[int, int], shifted: bool) -> None:
    """The maps of all windows scattered to one map of the image; sizes that are no multiple have padding."""
    plan = plan_windows(size, 4, shifted)
    where, maps = attention_geometry(plan, 3.0), random_log(2, 1, plan.count, 2, plan.tokens)
    if shifted:
        maps = regional(maps, where)
    whole = np.zeros((2, size[0] * size[1], size[0] * size[1]))
    for number, place in enumerate(token_places(plan)):
        real = np.flatnonzero(place >= 0)
        for head in range(2):
            part = np.exp(maps[0, number, head])[np.ix_(real, real)]
            part = part / part.sum(axis=-1, keepdims=True)  # what went to padding is shared out
            whole[head][np.ix_(place[real], place[real])] = part
    with np.errstate(divide="ignore"):
        image = numbers(log(whole), grid(*size, pixels=3.0))
    for ours, theirs in zip(numbers(maps, where), image, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [0, 1])
def test_bounds_and_symmetries(prefix: int) -> None:
    where, maps = grid(3, 4, pixels=2.0, prefix=prefix), random_log(3, 4, 1, 3, 12 + prefix)
    found = numbers(maps, where)
    assert (found.drop >= 0).all() and (found.drop <= distances(where).max()).all()
    assert (found.entropy >= 0).all() and (found.entropy <= max_entropy(where)).all()
    assert (found.kl >= 0).all() and np.allclose(np.diagonal(found.kl, axis1=1, axis2=2), 0)
    np.testing.assert_allclose(np.diagonal(found.cross, axis1=1, axis2=2), found.entropy, rtol=1e-12)
    # the distance of the mean map is the mean distance (drop); its entropy is larger, its KL smaller
    mean = numbers(np.log(np.exp(maps).mean(axis=0, keepdims=True)), where)
    np.testing.assert_allclose(mean.drop[0], found.drop.mean(axis=0))
    assert (mean.entropy[0] >= found.entropy.mean(axis=0)).all()
    assert layer_divergence(mean.kl[0]) <= layer_divergence(found.kl).mean()
    # pixels scale the distance; the grid may be mirrored and transposed
    larger = numbers(maps, grid(3, 4, pixels=6.0, prefix=prefix))
    np.testing.assert_allclose(larger.drop, 3 * found.drop)
    tokens = np.arange(12).reshape(3, 4)
    for turned, shape in ((tokens[:, ::-1], (3, 4)), (tokens.T, (4, 3))):
        order = np.concatenate([np.arange(prefix), turned.ravel() + prefix])
        moved = numbers(maps[:, :, :, order][..., order], grid(*shape, pixels=2.0, prefix=prefix))
        np.testing.assert_allclose(moved.drop, found.drop)
    # a copy of a head has no divergence; keys may be permuted for all heads together, and heads among themselves
    twice = maps.copy()
    twice[:, :, 1] = maps[:, :, 0]
    np.testing.assert_allclose(numbers(twice, where).kl[:, 0, 1], 0, atol=1e-12)
    keys = np.concatenate([np.arange(prefix), np.random.default_rng(0).permutation(12) + prefix])
    np.testing.assert_allclose(numbers(maps[..., keys], where).kl, found.kl, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        layer_divergence(numbers(maps[:, :, [2, 0, 1]], where).kl), layer_divergence(found.kl)
    )
    np.testing.assert_allclose(found.shannon, found.shannon.transpose(0, 2, 1), rtol=1e-9, atol=1e-12)
    assert (found.shannon >= -1e-12).all() and (found.shannon <= np.log(2)).all()
    np.testing.assert_allclose(
        kl_from_cross_entropies(found.cross.mean(axis=0)), found.kl.mean(axis=0), atol=1e-12
    )


def test_against_loops() -> None:
    where, maps = grid(3, 4, pixels=2.0, prefix=1), random_log(4, 4, 1, 3, 13)
    weights, apart, found = np.exp(maps)[:, 0], distances(where), numbers(maps, where)
    for b, h in ((0, 0), (1, 2), (3, 1)):
        rows = weights[b, h, 1:]
        patches = [row[1:] / row[1:].sum() for row in rows]
        far = [row[1:] @ apart[q] for q, row in enumerate(rows)]
        near = [row @ apart[q] for q, row in enumerate(patches)]
        assert found.drop[b, h] == pytest.approx(np.mean(far))
        assert found.renorm[b, h] == pytest.approx(np.mean(near))
        assert found.entropy[b, h] == pytest.approx(np.mean([-row @ np.log(row) for row in rows]))
        assert found.entropy_patch[b, h] == pytest.approx(np.mean([-row @ np.log(row) for row in patches]))
        for g in range(3):
            other = weights[b, g, 1:]
            cross = [-row @ np.log(they) for row, they in zip(rows, other, strict=True)]
            assert found.cross[b, h, g] == pytest.approx(np.mean(cross))
            middle = 0.5 * (rows + other)
            both = 0.5 * (rows * np.log(rows / middle) + other * np.log(other / middle)).sum(axis=-1)
            assert found.shannon[b, h, g] == pytest.approx(both.mean(), abs=1e-12)
    of_weights = jax.jit(lambda x: entropy(log_from_weights(jnp.exp(x)), where))(jnp.asarray(maps))
    np.testing.assert_allclose(of_weights, found.entropy, atol=1e-9)


def test_one_head_has_no_diversity() -> None:
    assert np.isnan(layer_divergence(np.asarray(head_kl(jnp.asarray(uniform(2)), grid(2))[0])))
