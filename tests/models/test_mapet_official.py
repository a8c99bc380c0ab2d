"""MaPeT's network in detail: both streams, who depends on whom, and its relatives, on the official fixture's weights.

Logits, losses and gradients are compared in tests/methods/test_parity.py, through the methods themselves.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.corruptions.permutation import attention_masks, ranks, targets_of
from mim_jax.interop.official import from_mapet
from mim_jax.models.attention_masks import TwoStreams
from mim_jax.models.masked_predictor import MaskedPredictor
from mim_jax.models.vit import ViTConfig
from mim_jax.targets.pixels import patchify, unpatchify
from tests import official
from tests.jacobians import jacobian

CONTEXT, SLOTS, TARGETS = 5, 17, 12
CONFIG = ViTConfig(image_size=(64, 64), patch=16, width=32, depth=3, heads=4, layer_scale=0.1)
NETWORK = MaskedPredictor(CONFIG, 64)


class Case(official.Case):
    """The fixture, and its orders from 0."""

    def __init__(self, precision: str) -> None:
        super().__init__("mapet_public", from_mapet, precision)
        self.order = jnp.asarray(self.f["permutation"] - 1)
        self.targets = targets_of(self.order, CONTEXT)
        self.raster = jnp.take_along_axis(ranks(self.order), self.targets, axis=1) - CONTEXT


@functools.cache
def layout() -> TwoStreams:
    """Who sees whom where slots stand in rank order."""
    with jax.ensure_compile_time_eval():
        masks = attention_masks(jnp.arange(SLOTS), jnp.arange(CONTEXT, SLOTS), CONTEXT)
        content, query = (np.asarray(mask) for mask in masks)
    return TwoStreams(content, query, CONTEXT)


@jax.jit
def logits(params, image, order) -> jax.Array:
    """Query logits in raster order of the targets."""
    out = NETWORK.apply({"params": params}, patchify(image, 16), order, layout(), method="two_stream")
    raster = jnp.argsort(order[:, CONTEXT:], axis=1)
    return jnp.take_along_axis(out, raster[..., None], axis=1)


@pytest.fixture
def case(precision: str) -> Case:
    return Case(precision)


def close(actual, expected, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)


def streams(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Both streams after the final norm, nothing skipped, in raster order."""
    content, query = attention_masks(ranks(case.order), case.targets, CONTEXT)

    def run(net: MaskedPredictor) -> jax.Array:
        real = net.encoder.input_tokens(patchify(case.image, 16))
        positions = jnp.broadcast_to(net.encoder.positions(), real.shape)
        queries = net.mask_token + jnp.take_along_axis(positions, case.targets[..., None], axis=1)
        rows = jnp.concatenate([real, queries, queries], axis=1)
        mask = jnp.concatenate([content, query], axis=1)[:, None]
        return net.encoder.final_norm(net.encoder.apply_blocks(rows, mask=mask, num_keys=SLOTS + TARGETS)[-1])

    out = np.asarray(jax.jit(lambda params: NETWORK.apply({"params": params}, method=run))(case.params))
    return out[:, : SLOTS + TARGETS], out[:, SLOTS + TARGETS :]


def test_both_streams(case: Case) -> None:
    content, query = streams(case)
    close(content, case.f["content_final64"], case.values)
    close(query, case.f["query_final64"], case.values)
    first = np.argmin(np.asarray(case.raster), axis=1)  # the first target's query is its MASK content row
    for example, place in enumerate(first):
        assert (query[example, place] == content[example, SLOTS + place]).all()


def test_content_stream_without_mask_is_a_plain_vit(case: Case) -> None:
    everything = jnp.ones((SLOTS, SLOTS), bool)

    def masked(net: MaskedPredictor) -> jax.Array:
        return net.encoder.apply_blocks(net.encoder.input_tokens(patchify(case.image, 16)), mask=everything)[
            -1
        ]

    def plain(net: MaskedPredictor) -> jax.Array:
        return net.encoder.apply_blocks(net.encoder.input_tokens(patchify(case.image, 16)))[-1]

    both = jax.jit(lambda params: [NETWORK.apply({"params": params}, method=m) for m in (masked, plain)])(
        case.params
    )
    close(both[0], both[1], case.values)


@pytest.mark.slow
def test_jacobian_of_the_first_example(case: Case) -> None:
    """No leakage, exactly: d sum(logits^2) of a target by the pixels of every patch."""

    def energy(image: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(logits(case.params, image, case.order)), axis=-1)[0]

    slopes = jacobian(energy, case.image)[:, 0]  # [P, H, W, 3]
    largest = np.asarray(jnp.max(jnp.abs(patchify(slopes, 16)), axis=-1))  # [P, L]
    allowed = case.f["jac_allowed"]
    assert (largest[~allowed] == 0.0).all() and largest[allowed].min() > 0.1
    scale = case.f["jac_sample0"].max()
    close(largest / scale, case.f["jac_sample0"] / scale, case.gradients)


def test_context_order_does_not_matter_and_the_last_target_is_seen_by_nobody(case: Case) -> None:
    base = np.asarray(logits(case.params, case.image, case.order))
    order = np.asarray(case.order).copy()
    order[:, 1:CONTEXT] = order[:, 1:CONTEXT][:, ::-1]
    close(logits(case.params, case.image, jnp.asarray(order)), base, case.values)

    patches = np.asarray(patchify(case.image, 16)).copy()
    last, first = np.asarray(case.order)[:, -1] - 1, np.asarray(case.order)[:, CONTEXT] - 1
    for changed, expect_change in ((last, False), (first, True)):
        noisy = patches.copy()
        noisy[np.arange(3), changed] += 1.0
        image = unpatchify(jnp.asarray(noisy), (4, 4))
        out = np.asarray(logits(case.params, image, case.order))
        for example in range(3):
            own = int(np.flatnonzero(np.asarray(case.targets)[example] - 1 == changed[example])[0])
            others = [p for p in range(TARGETS) if p != own]
            assert (out[example, own] == base[example, own]).all()
            differs = (out[example, others] != base[example, others]).any(axis=1)
            assert differs.all() if expect_change else not differs.any()


@pytest.mark.slow
def test_depth_one_last_query_is_mim_with_one_patch_masked() -> None:
    with jax.enable_x64(True):
        case = Case("float64")
        shallow = MaskedPredictor(ViTConfig(**{**CONFIG.__dict__, "depth": 1}), 64)
        params = {
            **case.params,
            "encoder": {k: v for k, v in case.params["encoder"].items() if k not in ("block_01", "block_02")},
        }
        last = case.order[:, -1:] - 1
        mask = jax.nn.one_hot(last[:, 0], SLOTS - 1, dtype=bool)

        @jax.jit
        def both(params, image) -> tuple[jax.Array, jax.Array]:
            patches, weights = patchify(image, 16), {"params": params}
            two = shallow.apply(weights, patches, case.order, layout(), method="two_stream")
            return two[:, -1], shallow.apply(weights, patches, mask, last, method="masked")[:, 0]

        two, one = both(params, case.image)
        close(two, np.asarray(one), 1e-12)
