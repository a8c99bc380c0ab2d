"""Every method with every option of the network: two gradients can be taken, or it is refused in one sentence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import batch, keys, small_config

from mim_jax.config.check import ConfigError
from mim_jax.methods import Method, Variables, build_method, complete_options

pytestmark = pytest.mark.slow

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "mae": ("mae", {}),
    "simmim": ("simmim", {}),
    "mapet": ("mapet", {}),
    "pim": ("mapet", {"method.objective": "pim"}),
    "grouped": ("mapet", {"method.objective": "grouped"}),
    "mim": ("beit", {"method.num_masked": 6, "method.min_block": 2}),
    "beyond_masking": ("beyond_masking", {"method.task": "mask"}),
    "beyond_masking, all painted": ("beyond_masking", {"method.task": "blur+mask"}),
    "amt on mae": ("amt", {"method.start": 0}),
    "amt on simmim": ("amt", {"method.base": "simmim", "method.start": 0, "method.unit": 1}),
    "classify": ("supervised", {"method.num_classes": 4}),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "LayerScale": {"model.layer_scale": 0.1},
    "shared bias": {"model.relative_bias": "shared"},
    "bias of each block": {"model.relative_bias": "per_block"},
    "learned positions": {"model.positions": "learned"},
    "no positions, bias": {"model.positions": "none", "model.relative_bias": "shared"},
    "1-D positions": {"model.positions": "sincos_1d"},
    "no CLS": {"model.cls": False},
    "no CLS, bias": {"model.cls": False, "model.relative_bias": "per_block"},
    "norm before, quick GELU, no bias": {
        "model.pre_norm": True, "model.activation": "quick_gelu", "model.patch_bias": False, "model.qkv_bias": "none",
    },
    "remat": {"model.remat": "block", "model.relative_bias": "per_block", "model.drop_path": 0.2},
    "bfloat16": {"model.dtype": "bfloat16", "model.relative_bias": "shared"},
    "not square": {"model.image_size": (16, 24), "augment.crop": "squash", "augment.eval_crop": "squash"},
    "Swin": {"model.variant": "swinv2_mu", "model.image_size": 32, "model.patch": None},
}  # fmt: skip
REFUSED = {
    **{(name, "no CLS"): "CLS is the first context slot" for name in ("mapet", "pim", "grouped")},
    **{(name, "no CLS, bias"): "CLS is the first context slot" for name in ("mapet", "pim", "grouped")},
    **{(name, "Swin"): "needs a ViT" for name in METHODS if name not in ("simmim", "classify")},
}
"""What cannot be, and what the sentence says; everything else must work."""


def gradients(method: Method, size: tuple[int, int]) -> Any:
    """Shapes of the gradients of the training loss, in every phase; nothing is computed."""

    def loss(params: Any, made: Any, of_batch: Any, own: Method) -> jax.Array:
        view = own.corrupt(keys(4), of_batch, made.replace(params=params))
        terms = own.loss(own.forward(made.replace(params=params), view, keys(4), True), view)
        return sum(jnp.sum(total) for name, (total, _) in terms.items() if name in own.loss_weights)

    params = jax.eval_shape(method.init_params, jax.random.key(0))
    made = jax.eval_shape(lambda: artefacts_of(method))
    of_batch = {**batch(4), "image": np.zeros((4, *size, 3), np.uint8)}
    of_batch["attention"] = np.ones((4, *method.net.grid), np.float32)
    for phase in method.phases:
        own = phase.method
        found = jax.eval_shape(jax.grad(lambda p, m, b, own=own: loss(p, m, b, own)), params, made, of_batch)
    assert jax.tree.map(lambda leaf: leaf.shape, found) == jax.tree.map(lambda leaf: leaf.shape, params)
    return found


def artefacts_of(method: Method) -> Any:
    """What `prepare` would make, without the work."""
    if not hasattr(method, "vocabulary"):
        return method.prepare(lambda: [], 0)
    artefacts = {
        "centroids": jnp.zeros((method.vocabulary, 3 * method.vit.patch**2)),
        "frequency": jnp.zeros((method.vit.num_patches, method.vocabulary)),
    }
    return Variables(artefacts=artefacts)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", METHODS)
def test_trains_or_is_refused(name: str, option: str) -> None:
    file, own = METHODS[name]

    def made() -> Method:
        return build_method(complete_options(small_config(file, {**own, **OPTIONS[option]})))

    if sentence := REFUSED.get((name, option)):
        with pytest.raises(ConfigError, match=sentence):
            gradients(made(), (16, 16))
        return
    method = made()
    gradients(method, method.view(True).keys["image"].shape[:2])


@pytest.mark.parametrize("name", ["mae", "mapet"])
def test_a_relative_bias_follows_the_places_of_the_patches(name: str) -> None:
    """Rows stand in another order than the raster, and the bias must be that of the places they hold.

    Without positions, mirroring the places of all patches and the table of offsets with them must change nothing.
    """
    file, own = METHODS[name]
    options = {**own, "model.relative_bias": "per_block", "model.positions": "none"}
    method = build_method(complete_options(small_config(file, options)))
    rows, columns = method.vit.grid
    draw = np.random.default_rng(0)
    offsets = draw.normal(size=(2 * rows - 1, 2 * columns - 1, method.vit.heads)).astype(np.float32)
    rest = draw.normal(size=(3, method.vit.heads)).astype(np.float32)  # of CLS

    @jax.jit
    def result(table: Any, view: Any) -> Any:
        whole = jnp.concatenate([table.reshape(-1, method.vit.heads), rest])
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: whole if "table" in jax.tree_util.keystr(path) else leaf,
            method.init_params(jax.random.key(0)),
        )
        if "visible" in view:  # the decoder has positions of its own, so only the encoder can be mirrored
            return method.apply(params, view["patches"], view["visible"], None, method="encode")
        return method.forward(Variables(params), view, keys(4), False)["logits"]

    mirrored = jnp.asarray(np.arange(rows * columns).reshape(rows, columns)[:, ::-1].ravel())
    patches = jnp.asarray(draw.normal(size=(4, rows * columns, 3 * method.vit.patch**2)).astype(np.float32))
    slots = jnp.asarray(np.stack([draw.permutation(rows * columns) for _ in range(4)]))
    order = jnp.pad(slots + 1, ((0, 0), (1, 0)))
    view = {"patches": patches, **({"order": order} if name == "mapet" else {"visible": slots[:, :4]})}
    other = {"patches": patches[:, mirrored]}  # every patch keeps its pixels and changes its place
    if name == "mapet":
        other["order"] = jnp.pad(mirrored[slots] + 1, ((0, 0), (1, 0)))
    else:
        other["visible"] = mirrored[slots[:, :4]]
    made = result(offsets, view)
    assert np.abs(made - result(0 * offsets, view)).max() > 1e-5
    np.testing.assert_allclose(made, result(offsets[:, ::-1], other), atol=1e-6)
