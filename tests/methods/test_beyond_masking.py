"""Beyond Masking against the closed-form anchors of docs/papers/beyond_masking.md A12, its wrong variants, and the invariants of A11."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import batch, keys, small_config, small_method

from mim_jax.corruptions.degradation import blur, decolorize
from mim_jax.corruptions.masking import split_by_noise
from mim_jax.corruptions.misalignment import distort, zoom_in, zoom_out
from mim_jax.interop.official import from_mae
from mim_jax.methods import Variables
from mim_jax.methods.beyond_masking import BeyondMasking
from mim_jax.targets.pixels import normalise, patchify
from tests.official import split_heads

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PAPER = {"model.image_size": 224, "model.patch": 16, "model.width": 24, "model.depth": 2, "model.heads": 2,
         "method.decoder_width": 12, "method.decoder_depth": 1, "method.decoder_heads": 3}  # fmt: skip
NOISE = ((37 * np.arange(196)[None] + 11 * np.arange(2)[:, None]) % 196) / 196


def picture(side: int) -> np.ndarray:
    """I_Q of A12: normalised images [2, Q, Q, 3]."""
    y, x, c, b = np.arange(side), np.arange(side), np.arange(3), np.arange(2)
    wave = np.sin(0.05 * (x[:, None] + 1) * (c[None] + 1))
    column = np.cos(0.03 * (y[None] + 1) * (b[:, None] + 1))
    return column[:, :, None, None] * wave[None, None] + 0.1 * c


PRED = 0.5 * np.sin(
    0.1 * np.arange(196)[None, :, None] + 0.013 * np.arange(768) + np.arange(2)[:, None, None]
)


def paper(task: str, **more) -> BeyondMasking:
    method = small_method(
        "beyond_masking", {**PAPER, "method.task": task, **{f"method.{k}": v for k, v in more.items()}}
    )
    assert isinstance(method, BeyondMasking)
    return method


def split(method: BeyondMasking) -> dict[str, jax.Array]:
    if not method.masked:
        everything = jnp.broadcast_to(jnp.arange(196), (2, 196))
        return {"visible": everything, "hidden": jnp.zeros((2, 0), jnp.int32)}
    visible, hidden = split_by_noise(jnp.asarray(NOISE), 49)
    return {"visible": visible, "hidden": hidden}


def compare(task: str, pred=PRED, offset=None, side: int | None = None, **more) -> dict[str, float]:
    """The terms of a task's loss for a prediction [2, 196, 768], on I of the size that the task asks for."""
    method = paper(task, **more)
    view = split(method)
    if offset is not None:
        view["offset"] = jnp.broadcast_to(jnp.asarray(offset), (2, 2))
    original = jnp.asarray(picture(side or method.view(True).keys["image"].shape[0]) * STD + MEAN)
    view |= method.targets(original, view)
    pred = jnp.asarray(pred)
    if method.paints_hidden_only:
        pred = jnp.take_along_axis(pred, view["hidden"][..., None], axis=1)
    terms = method.loss({"pixels": pred}, view)
    means = {name: float(total.sum() / count.sum()) for name, (total, count) in terms.items()}
    return means | {"total": sum(weight * means[name] for name, weight in method.loss_weights.items())}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_inputs_are_the_anchors() -> None:
    sums = {side: picture(side).sum() for side in (288, 224, 160)}
    assert sums == pytest.approx({288: 50019.19759838, 224: 31312.81224295, 160: 13625.09104203}, abs=1e-6)
    assert PRED.sum() == pytest.approx(433.03566162, abs=1e-6)
    visible, _ = split_by_noise(jnp.asarray(NOISE), 49)
    assert visible[0, :6].tolist() == [0, 53, 106, 159, 16, 69] and visible[1, :6].tolist() == [
        5,
        58,
        111,
        164,
        21,
        74,
    ]


@pytest.mark.slow
def test_plain_losses() -> None:
    assert compare("distort")["loss"] == pytest.approx(1.121593914282, abs=1e-10)
    assert compare("blur")["loss"] == pytest.approx(1.121593914282, abs=1e-10)
    assert compare("mask")["loss"] == pytest.approx(1.123536294481, abs=1e-10)


@pytest.mark.slow
def test_zoom_in_losses() -> None:
    masked, whole = compare("zoom_in+mask"), compare("zoom_in")
    assert masked["centre"] == pytest.approx(1.107045173800, abs=1e-10)
    assert masked["edge"] == pytest.approx(4.103719104865, abs=1e-10)
    assert masked["total"] == pytest.approx(1.706379960013, abs=1e-10)
    assert whole["centre"] == pytest.approx(1.107320748821, abs=1e-10)
    assert whole["total"] == pytest.approx(1.706600419989, abs=1e-10)
    for wrong in ((1.111497, 4.286835), (1.110946, 4.117976), (1.106330, 4.101883), (1.107083, 4.103837),
                  (0.350683, 1.382545), (1.107523, 4.131686), (1.118903, 4.471694), (1.108147, 4.103719),
                  (1.117584, 4.148287), (1.107045, 1.022509)):  # fmt: skip
        assert max(abs(masked["centre"] - wrong[0]), abs(masked["edge"] - wrong[1])) > 3e-5


@pytest.mark.slow
def test_zoom_out_losses() -> None:
    """(left, top) -> loss; ours takes (top, left)."""
    for (left, top), expected in {(20, 41): 0.915910065748, (0, 0): 0.921325866700, (63, 63): 0.920947689765,
                                  (0, 63): 0.919028864879, (32, 32): 0.916784261246}.items():  # fmt: skip
        assert compare("zoom_out", offset=(top, left))["loss"] == pytest.approx(expected, abs=1e-10)
    assert compare("zoom_out+mask", offset=(41, 20))["loss"] == pytest.approx(0.916260374400, abs=1e-10)


def tiny_parameters() -> dict:
    """The numbered parameters of A12's end-to-end model, under MAE's official names."""
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("patch_embed.proj.weight", (24, 3, 16, 16)),
        ("patch_embed.proj.bias", (24,)),
    ]

    def block(stem: str, d: int) -> None:
        for name, shape in (
            ("norm1.weight", (d,)), ("norm1.bias", (d,)), ("attn.qkv.weight", (3 * d, d)), ("attn.q_bias", (d,)),
            ("attn.v_bias", (d,)), ("attn.proj.weight", (d, d)), ("attn.proj.bias", (d,)), ("norm2.weight", (d,)),
            ("norm2.bias", (d,)), ("mlp.fc1.weight", (4 * d, d)), ("mlp.fc1.bias", (4 * d,)),
            ("mlp.fc2.weight", (d, 4 * d)), ("mlp.fc2.bias", (d,)),
        ):  # fmt: skip
            shapes.append((f"{stem}.{name}", shape))

    block("blocks.0", 24)
    block("blocks.1", 24)
    shapes.extend(
        [
            ("norm.weight", (24,)),
            ("norm.bias", (24,)),
            ("decoder_embed.weight", (12, 24)),
            ("mask_token", (1, 1, 12)),
        ]
    )
    block("decoder_blocks.0", 12)
    shapes.extend(
        [
            ("decoder_norm.weight", (12,)),
            ("decoder_norm.bias", (12,)),
            ("decoder_pred.weight", (768, 12)),
            ("decoder_pred.bias", (768,)),
        ]
    )
    assert len(shapes) == 49
    state = {}
    for t, (name, shape) in enumerate(shapes):
        scale = "norm" in name and name.endswith("weight")
        wave = np.sin(0.7 * t + 0.37 * np.arange(np.prod(shape))).reshape(shape)
        state[name] = 1.0 + 0.1 * wave if scale else 0.05 * wave
    tree = from_mae(state)
    for part, head_dim in (("encoder", 12), ("decoder", 4)):
        tree[part] = split_heads(tree[part], head_dim)
    return jax.tree.map(jnp.asarray, tree)


def predict(task: str, network: np.ndarray) -> jax.Array:
    method = paper(task)
    view = {**split(method), "patches": patchify(jnp.asarray(network), 16)}
    if not method.paints_hidden_only:
        return method.forward(Variables(tiny_parameters()), view, keys(2), False)["pixels"]
    pixels = method.apply(
        tiny_parameters(), view["patches"], view["visible"], view["hidden"], method="predict_all"
    )
    back = jnp.argsort(jnp.concatenate([view["visible"], view["hidden"]], axis=1), axis=1)
    return jnp.take_along_axis(pixels, back[..., None], axis=1)


@pytest.mark.slow
def test_tiny_network_end_to_end() -> None:
    centre = np.asarray(zoom_in(jnp.asarray(picture(288)), (224, 224)))
    pred = predict("zoom_in+mask", centre)
    np.testing.assert_allclose(pred[0, 0, :4], [0.04491197, 0.0423756, -0.00112169, -0.01584575], atol=1e-8)
    np.testing.assert_allclose(pred[1, 195, -3:], [0.0134858, 0.18146678, -0.07782761], atol=1e-8)
    assert float(pred.sum()) == pytest.approx(-20.02913676, abs=1e-6)
    terms = compare("zoom_in+mask", pred)
    assert terms["centre"] == pytest.approx(1.012958158079, abs=1e-9)
    assert terms["edge"] == pytest.approx(3.689216430407, abs=1e-9)
    assert terms["total"] == pytest.approx(1.548209812508, abs=1e-9)
    whole = compare("zoom_in", predict("zoom_in", centre))
    assert whole["centre"] == pytest.approx(1.013202696074, abs=1e-9)
    assert whole["edge"] == pytest.approx(3.687683588186, abs=1e-9)
    assert whole["total"] == pytest.approx(1.548098874497, abs=1e-9)
    masked = predict("mask", picture(224))
    np.testing.assert_allclose(masked[0, 0, :3], [0.04439797, 0.04219863, -0.00051247], atol=1e-8)
    assert compare("mask", masked)["loss"] == pytest.approx(1.015289836079, abs=1e-9)
    place = jax.vmap(lambda image: zoom_out(image, jnp.asarray([41, 20]), (224, 224)))
    small = predict("zoom_out", np.asarray(place(jnp.asarray(picture(160)))))
    np.testing.assert_allclose(small[0, 0, :3], [0.04510042, 0.04236038, -0.00130195], atol=1e-8)
    assert compare("zoom_out", small, offset=(41, 20))["loss"] == pytest.approx(0.821980599973, abs=1e-9)


@pytest.mark.slow
def test_tiny_network_on_changed_styles() -> None:
    fish = jax.vmap(lambda image: distort(image, jnp.asarray([0.5, -0.3]), jnp.asarray(0.2)))
    kernel = (1 / 49 + 0.02 * np.sin(1 + np.arange(441))).reshape(3, 3, 7, 7)
    grey = jax.vmap(lambda image: decolorize(image, jnp.asarray([0.2, 0.5, 0.3])))
    images = jnp.asarray(picture(224))
    cases = {
        "distort": (fish(images), 1.014753964182, [0.04452698, 0.04230221, -0.00069721]),
        "blur": (
            blur(images, jnp.asarray([kernel, kernel])),
            1.014784433459,
            [0.04677223, 0.04213977, -0.00285506],
        ),
        "decolorize": (grey(images), 1.014787597773, [0.04442377, 0.04217673, -0.00052649]),
    }
    for task, (network, loss, first) in cases.items():
        pred = predict(task, np.asarray(network))
        np.testing.assert_allclose(pred[0, 0, :3], first, atol=1e-8, err_msg=task)
        assert compare(task, pred)["loss"] == pytest.approx(loss, abs=1e-9), task


def test_perfect_and_zero_predictions() -> None:
    for task in ("distort", "blur", "decolorize", "mask"):
        method = paper(task)
        original = jnp.asarray(picture(224) * STD + MEAN)
        assert compare(task, method.normalised(original))["loss"] == pytest.approx(0, abs=1e-12)
        assert compare(task, 0 * PRED)["loss"] == pytest.approx(0.996, abs=1e-3)
    whole = paper("zoom_in")
    from mim_jax.corruptions.misalignment import area_resize

    for task, side, offset in (("zoom_in", 288, None), ("zoom_out", 160, (7, 55))):
        shrunk = area_resize(jnp.asarray(picture(side) * STD + MEAN), (224, 224))
        perfect = compare(task, whole.normalised(shrunk), offset=offset)
        assert perfect["edge" if task == "zoom_in" else "loss"] == pytest.approx(0, abs=1e-20)
    assert compare("zoom_in", 0 * PRED)["edge"] < 4


def test_zoom_ratio_one_has_no_ring() -> None:
    terms = compare("zoom_in", zoom_in_size=224)
    assert terms["edge"] == 0.0 and terms["total"] == pytest.approx(0.8 * 1.121593914282, abs=1e-10)


@pytest.mark.slow
def test_which_tokens_each_zoom_term_touches() -> None:
    method = paper("zoom_in")
    view = split(method)
    view |= method.targets(jnp.asarray(picture(288) * STD + MEAN), view)

    def term(name):
        return jax.grad(lambda p: jnp.sum(method.loss({"pixels": p}, view)[name][0]))(jnp.asarray(PRED))

    still = {
        name: (np.abs(np.asarray(term(name))).max(axis=2) == 0).sum(axis=1) for name in ("centre", "edge")
    }
    assert (still["centre"] == 52).all() and (still["edge"] == 100).all()


TASKS = (
    "mask",
    "zoom_in",
    "zoom_out",
    "distort",
    "blur",
    "decolorize",
    "zoom_in+mask",
    "zoom_in+blur",
    "distort+mask",
    "zoom_out+decolorize+mask",
)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_corruption_is_per_image_repeats_and_lets_gradients_through(task: str) -> None:
    method = small_method("beyond_masking", {"method.task": task, "model.image_size": 28})
    assert isinstance(method, BeyondMasking)
    side = method.view(True).keys["image"].shape[0]
    data = {**batch(4, 4 * (side // 4)), "image": np.repeat(batch(1, side)["image"], 4, axis=0)}
    one, two = method.corrupt(keys(4), data, Variables()), method.corrupt(keys(4), data, Variables())
    assert all((np.asarray(one[k]) == np.asarray(two[k])).all() for k in one)
    if task != "zoom_in":  # nothing is drawn there
        drawn = [
            np.concatenate([np.ravel(one[k][i]) for k in ("patches", "visible")]).tobytes() for i in range(4)
        ]
        assert len(set(drawn)) == 4
    jitted = jax.jit(lambda d: method.corrupt(keys(4), d, Variables()))(data)
    np.testing.assert_allclose(jitted["patches"], one["patches"], atol=1e-5)
    params = method.init_params(jax.random.key(0))

    def loss(params):
        terms = method.loss(method.forward(Variables(params), one, keys(4), True), one)
        return sum(w * jnp.sum(terms[n][0]) / jnp.sum(terms[n][1]) for n, w in method.loss_weights.items())

    grads = jax.jit(jax.grad(loss))(params)
    unused = ("mask_token",) if not method.masked else ()
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all()
        assert np.abs(np.asarray(leaf)).max() > 0 or any(
            name in jax.tree_util.keystr(path) for name in unused
        ), path


@pytest.mark.slow
def test_no_leakage() -> None:
    """Hidden pixels, and pixels outside the zoomed crop, reach the prediction through nothing but the target."""
    method = small_method("beyond_masking", {"method.task": "zoom_in+mask", "model.image_size": 28})
    view = method.corrupt(keys(2), batch(2, 36), Variables())
    params = jax.tree.map(lambda p: p + 0.05, method.init_params(jax.random.key(0)))
    energy = jax.jit(
        jax.grad(
            lambda p: jnp.sum(
                jnp.square(
                    method.forward(Variables(params), {**view, "patches": p}, keys(2), False)["pixels"]
                )
            )
        )
    )
    moved = np.abs(np.asarray(energy(view["patches"]))).max(axis=2)
    for example in range(2):
        assert (moved[example, view["hidden"][example]] == 0.0).all()
        assert (moved[example, view["visible"][example]] > 0.0).all()
    outside = batch(2, 36)
    outside["image"] = outside["image"].copy()
    outside["image"][:, :4] = 255 - outside["image"][:, :4]
    other = method.corrupt(keys(2), outside, Variables())
    np.testing.assert_array_equal(other["patches"], view["patches"])
    assert (np.asarray(other["ring"]) != np.asarray(view["ring"])).any()


def test_draws_for_a_whole_batch() -> None:
    for task in ("zoom_out", "decolorize"):
        method = small_method(
            "beyond_masking", {"method.task": task, "model.image_size": 28, "method.draws": "batch"}
        )
        side = method.view(True).keys["image"].shape[0]
        data = {**batch(4, side), "image": np.repeat(batch(1, side)["image"], 4, axis=0)}
        patches = np.asarray(method.corrupt(keys(4), data, Variables())["patches"])
        assert (patches == patches[:1]).all()


@pytest.mark.parametrize(("variant", "count"), [("b", 93_325_440), ("l", 329_209_088)])
def test_parameter_counts(variant: str, count: int) -> None:
    large = (
        {"method.decoder_width": 512, "method.decoder_depth": 8, "method.decoder_heads": 8}
        if variant == "l"
        else {}
    )
    base = {"method.decoder_width": 384, "method.decoder_depth": 4, "method.decoder_heads": 6}
    method = small_method(
        "beyond_masking",
        {"model.variant": variant, "model.image_size": 224, "model.patch": 16, **base, **large},
    )
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    assert sum(int(np.prod(s.shape)) for s in jax.tree.leaves(shapes)) == count


def test_schedule_of_the_paper() -> None:
    from mim_jax.training.optimiser import learning_rate

    config = small_config(
        "beyond_masking",
        {
            "method.task": "mask",
            "schedule.steps": 187500,
            "schedule.warmup_steps": 12500,
            "optim.lr": 1.2e-3,
            "schedule.min_lr": 1e-5,
        },
    )
    rate = [float(learning_rate(t, config, 6.0)) for t in (0, 6250, 12500, 100000, 187499)]
    # The official warm-up reaches the peak one step earlier (t / 12499), a difference of 8e-5 of the rate.
    np.testing.assert_allclose(rate, [0, 6e-4, 1.2e-3, 6.05e-4, 1.0000000096e-5], rtol=1e-4)


@pytest.mark.slow
def test_initialisation() -> None:
    method = small_method("beyond_masking", {"method.task": "mask", "model.variant": "ti"})
    params = method.init_params(jax.random.key(0))
    kernel = params["encoder"]["block_00"]["mlp"]["fc1"]["kernel"]
    assert (
        float(jnp.std(kernel)) == pytest.approx(0.010791, rel=0.01) and float(jnp.abs(kernel).max()) <= 0.02
    )
    assert float(jnp.abs(params["decoder_embed"]["kernel"]).max()) == pytest.approx(192**-0.5, rel=0.01)
    assert "bias" not in params["decoder_embed"] and "cls_token" not in params["encoder"]


@pytest.mark.slow
def test_normalisation_is_undone_before_targets_are_made() -> None:
    """Targets come from values in [0, 1]: the mean and std of the data set do not enter them."""
    views = []
    for mean in ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5)):
        method = small_method(
            "beyond_masking", {"method.task": "blur", "model.image_size": 28, "data.mean": mean}
        )
        views.append(method.corrupt(keys(2), batch(2, 28), Variables()))
    np.testing.assert_array_equal(views[0]["target"], views[1]["target"])
    assert normalise(jnp.ones(3), (0.0, 0.0, 0.0), (1.0, 2.0, 4.0)).tolist() == [1.0, 0.5, 0.25]
