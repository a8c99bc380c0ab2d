"""Every number of the official MaPeT fixture, in float64 and float32 (tolerances: the fixtures' README)."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.corruptions.permutation import attention_masks, ranks, targets_of, tie_ranks
from mim_jax.interop.official import from_mapet, nest
from mim_jax.models.classifier import Classifier
from mim_jax.models.masked_predictor import MaskedPredictor
from mim_jax.models.two_streams import TwoStreams
from mim_jax.models.vit import ViTConfig
from mim_jax.targets.pixels import patchify, unpatchify
from tests.jacobians import jacobian

CONTEXT, SLOTS, TARGETS = 5, 17, 12
CONFIG = ViTConfig(image_size=(64, 64), patch=16, width=32, depth=3, heads=4, layer_scale=0.1)
NETWORK = MaskedPredictor(CONFIG, 64)


@pytest.fixture(params=["float64", "float32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    with jax.enable_x64(request.param == "float64"), jax.default_matmul_precision("highest"):
        yield request.param


class Case:
    """The fixture in our layout and in one precision."""

    def __init__(self, f, precision: str) -> None:
        dtype = np.dtype(precision)
        self.f = f
        self.logit_tolerance = 1e-9 if precision == "float64" else 1e-4
        self.loss_tolerance = 1e-9 if precision == "float64" else 1e-5
        self.gradient_tolerance = 1e-8 if precision == "float64" else 1e-3
        self.params = self.tree("w/", dtype)
        self.image = jnp.asarray(f["image"].transpose(0, 2, 3, 1).astype(dtype))
        self.order = jnp.asarray(f["permutation"] - 1)
        self.targets = targets_of(self.order, CONTEXT)
        self.raster = jnp.take_along_axis(ranks(self.order), self.targets, axis=1) - CONTEXT

    def tree(self, prefix: str, dtype) -> dict:
        flat = {key[len(prefix) :]: self.f[key] for key in self.f.files if key.startswith(prefix)}
        return jax.tree.map(lambda x: jnp.asarray(x.astype(dtype)), from_mapet(flat))

    def logits(self, params, image, *, mask_tokens: bool = True, rank=None) -> jax.Array:
        """Query logits in raster order of the targets."""
        rank = jnp.arange(SLOTS) if rank is None else rank
        content, query = attention_masks(rank, jnp.arange(CONTEXT, SLOTS), CONTEXT)
        if not mask_tokens:
            content, query = content[:SLOTS, :SLOTS], query[:, :SLOTS]
        layout = TwoStreams(np.asarray(content), np.asarray(query), CONTEXT)
        out = NETWORK.apply({"params": params}, patchify(image, 16), self.order, layout, method="two_stream")
        return jnp.take_along_axis(out, self.raster[..., None], axis=1)

    def loss(self, params, image) -> jax.Array:
        log_probability = jax.nn.log_softmax(self.logits(params, image))
        labels = jnp.asarray(self.f["target"])
        return -jnp.mean(jnp.take_along_axis(log_probability, labels[..., None], axis=-1))

    def mim(self) -> jax.Array:
        patches = patchify(self.image, 16)
        mask = np.zeros((3, SLOTS - 1), bool)
        np.put_along_axis(mask, np.asarray(self.targets) - 1, True, axis=1)
        return NETWORK.apply(
            {"params": self.params}, patches, jnp.asarray(mask), self.targets - 1, method="masked"
        )


@pytest.fixture
def case(mapet_official, precision: str) -> Case:
    return Case(mapet_official, precision)


def close(actual, expected, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)


def test_the_official_weights_fill_our_tree(case: Case) -> None:
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), patchify(case.image, 16))["params"]
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, case.params)


def test_logits_and_loss(case: Case) -> None:
    close(case.logits(case.params, case.image), case.f["logits64_bpv"], case.logit_tolerance)
    close(case.logits(case.params, case.image), case.f["logits_bpv"], 1e-4)
    close(case.loss(case.params, case.image), case.f["loss"], case.loss_tolerance)


def test_gradients(case: Case) -> None:
    params, image = jax.grad(case.loss, argnums=(0, 1))(case.params, case.image)
    expected = case.tree("grad64/", np.float64)
    assert jax.tree.structure(expected) == jax.tree.structure(params)

    def compare(path, ours, theirs) -> None:
        scale = np.abs(np.asarray(theirs)).max()
        error = np.abs(np.asarray(ours) - np.asarray(theirs)).max() / scale
        assert error < case.gradient_tolerance, (jax.tree_util.keystr(path), error)

    jax.tree_util.tree_map_with_path(compare, params, expected)
    compare(("image",), image, case.f["grad_image64"].transpose(0, 2, 3, 1))


def test_mim_three_ways(case: Case) -> None:
    """MASK by replacement == tied ranks in the query stream == the official MIM logits."""
    close(case.mim(), case.f["mim_logits64_bpv"], case.logit_tolerance)
    tied = tie_ranks(jnp.arange(SLOTS), CONTEXT, 1)
    close(case.logits(case.params, case.image, rank=tied), case.f["mim_logits64_bpv"], case.logit_tolerance)


def test_pim(case: Case) -> None:
    pim = case.logits(case.params, case.image, mask_tokens=False)
    close(pim, case.f["pim_logits64_bpv"], case.logit_tolerance)
    assert np.abs(np.asarray(pim) - case.f["logits64_bpv"]).max() > 1  # MASK tokens are used


def streams(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Both streams after the final norm, nothing skipped, in raster order."""
    content, query = attention_masks(ranks(case.order), case.targets, CONTEXT)

    def run(net: MaskedPredictor) -> jax.Array:
        real = net.encoder.tokens(patchify(case.image, 16))
        positions = jnp.broadcast_to(net.encoder.positions(), real.shape)
        queries = net.mask_token + jnp.take_along_axis(positions, case.targets[..., None], axis=1)
        rows = jnp.concatenate([real, queries, queries], axis=1)
        mask = jnp.concatenate([content, query], axis=1)[:, None]
        return net.encoder.final_norm(net.encoder.run(rows, mask=mask, num_keys=SLOTS + TARGETS)[-1])

    out = np.asarray(NETWORK.apply({"params": case.params}, method=run))
    return out[:, : SLOTS + TARGETS], out[:, SLOTS + TARGETS :]


def test_both_streams(case: Case) -> None:
    content, query = streams(case)
    close(content, case.f["content_final64"], case.logit_tolerance)
    close(query, case.f["query_final64"], case.logit_tolerance)
    first = np.argmin(np.asarray(case.raster), axis=1)  # the first target's query is its MASK content row
    for example, place in enumerate(first):
        assert (query[example, place] == content[example, SLOTS + place]).all()


def test_fine_tuning_forward(case: Case) -> None:
    head = {key[3:]: case.f[key] for key in case.f.files if key.startswith("ft/")}
    dtype = case.image.dtype
    params = {
        "encoder": {
            **case.params["encoder"],
            "norm": {"scale": head["fc_norm.weight"], "bias": head["fc_norm.bias"]},
        },
        **nest({"head.kernel": head["head.weight"].T, "head.bias": head["head.bias"]}),
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    logits = Classifier(CONFIG, 10).apply({"params": params}, patchify(case.image, 16))
    close(logits, case.f["ft_logits64"], case.logit_tolerance)


def test_content_stream_without_mask_is_a_plain_vit(case: Case) -> None:
    everything = jnp.ones((SLOTS, SLOTS), bool)

    def masked(net: MaskedPredictor) -> jax.Array:
        return net.encoder.run(net.encoder.tokens(patchify(case.image, 16)), mask=everything)[-1]

    def plain(net: MaskedPredictor) -> jax.Array:
        return net.encoder.run(net.encoder.tokens(patchify(case.image, 16)))[-1]

    both = [NETWORK.apply({"params": case.params}, method=method) for method in (masked, plain)]
    close(both[0], both[1], case.logit_tolerance)


def test_jacobian_of_the_first_example(case: Case) -> None:
    """No leakage, exactly: d sum(logits^2) of a target by the pixels of every patch."""

    def energy(image: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(case.logits(case.params, image)), axis=-1)[0]

    slopes = jacobian(energy, case.image)[:, 0]  # [P, H, W, 3]
    largest = np.asarray(jnp.max(jnp.abs(patchify(slopes, 16)), axis=-1))  # [P, L]
    allowed = case.f["jac_allowed"]
    assert (largest[~allowed] == 0.0).all() and largest[allowed].min() > 0.1
    scale = case.f["jac_sample0"].max()
    close(largest / scale, case.f["jac_sample0"] / scale, case.gradient_tolerance)


def test_context_order_does_not_matter_and_the_last_target_is_seen_by_nobody(case: Case) -> None:
    base = np.asarray(case.logits(case.params, case.image))
    order = np.asarray(case.order).copy()
    order[:, 1:CONTEXT] = order[:, 1:CONTEXT][:, ::-1]
    shuffled = Case(case.f, str(case.image.dtype))
    shuffled.order = jnp.asarray(order)
    close(shuffled.logits(case.params, case.image), base, case.logit_tolerance)

    patches = np.asarray(patchify(case.image, 16)).copy()
    last, first = np.asarray(case.order)[:, -1] - 1, np.asarray(case.order)[:, CONTEXT] - 1
    for changed, expect_change in ((last, False), (first, True)):
        noisy = patches.copy()
        noisy[np.arange(3), changed] += 1.0
        out = np.asarray(case.logits(case.params, unpatchify(jnp.asarray(noisy), (4, 4))))
        for example in range(3):
            own = int(np.flatnonzero(np.asarray(case.targets)[example] - 1 == changed[example])[0])
            others = [p for p in range(TARGETS) if p != own]
            assert (out[example, own] == base[example, own]).all()
            differs = (out[example, others] != base[example, others]).any(axis=1)
            assert differs.all() if expect_change else not differs.any()


def test_depth_one_last_query_is_mim_with_one_patch_masked(mapet_official) -> None:
    with jax.enable_x64(True):
        case = Case(mapet_official, "float64")
        shallow = MaskedPredictor(ViTConfig(**{**CONFIG.__dict__, "depth": 1}), 64)
        params = {
            **case.params,
            "encoder": {k: v for k, v in case.params["encoder"].items() if k not in ("block_01", "block_02")},
        }
        content, query = attention_masks(jnp.arange(SLOTS), jnp.arange(CONTEXT, SLOTS), CONTEXT)
        patches = patchify(case.image, 16)
        layout = TwoStreams(np.asarray(content), np.asarray(query), CONTEXT)
        two = shallow.apply({"params": params}, patches, case.order, layout, method="two_stream")[:, -1]
        last = case.order[:, -1:] - 1
        mask = jax.nn.one_hot(last[:, 0], SLOTS - 1, dtype=bool)
        one = shallow.apply({"params": params}, patches, mask, last, method="masked")[:, 0]
        close(two, np.asarray(one), 1e-12)
