"""The step: exact accumulation, the same losses on any mesh, parameters really sharded, the moving average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import batch, prepared, small_config

from mim_jax.config.schema import Mesh
from mim_jax.data import place
from mim_jax.methods import Variables, build_method
from mim_jax.methods.method import Method
from mim_jax.training.optimiser import learning_rate, make_optimiser
from mim_jax.training.sharding import batch_sharding, make_mesh
from mim_jax.training.state import create_state
from mim_jax.training.step import gradients, make_train_step
from tests.meshes import mesh_of

pytestmark = pytest.mark.slow

STEPS = 20


@functools.cache
def trained(devices: int, fsdp: int = 1, tensor: int = 1):
    """Losses and the state after STEPS updates; one compilation for all tests of a mesh."""
    return train(mesh_of(devices, fsdp, tensor))


def train(mesh: jax.sharding.Mesh, steps: int = STEPS, overrides: dict | None = None):
    config = small_config("mapet", {"model.drop_path": 0.2, "optim.lr": 3e-3, **(overrides or {})})
    method = build_method(config)
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    optimiser = make_optimiser(config, method.rules, shapes, 6.0)
    ema = bool(config.optim.ema)
    state = create_state(method, optimiser, prepared(method), ema=ema, mesh=mesh, seed=config.seed)
    step = make_train_step(method, optimiser, jax.eval_shape(lambda: state), mesh, config, 6.0)
    losses = []
    for number in range(steps):
        data = batch(16, first=16 * (number % 4))
        data["epoch"] += number // 4
        state, metrics = step(state, place(data, batch_sharding(mesh)))
        losses.append(float(metrics["loss"]))
    return np.array(losses), state


def test_it_learns() -> None:
    losses, _ = trained(1)
    assert losses[-4:].mean() < losses[:4].mean() - 0.05


@pytest.mark.parametrize(("devices", "fsdp", "tensor"), [(2, 1, 1), (8, 8, 1), (8, 2, 2)])
def test_same_losses_on_any_mesh(devices: int, fsdp: int, tensor: int) -> None:
    losses, _ = trained(devices, fsdp, tensor)
    np.testing.assert_allclose(losses, trained(1)[0], rtol=1e-5)


def test_parameters_are_really_sharded() -> None:
    _, state = trained(8, 8, 1)
    kernel = state.params["encoder"]["block_00"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (32, 128)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 128)}
    assert len({shard.device for shard in kernel.addressable_shards}) == 8
    moment = state.opt_state[1].mu["encoder"]["block_00"]["mlp"]["fc1"]["kernel"]
    assert {shard.data.shape for shard in moment.addressable_shards} == {(4, 128)}
    assert state.artefacts["centroids"].sharding.is_fully_replicated
    _, tensor = trained(8, 2, 2)
    attention = tensor.params["encoder"]["block_00"]["attn"]  # 2 heads of 16 channels, width 32
    shards = jax.tree.map(lambda leaf: {shard.data.shape for shard in leaf.addressable_shards}, attention)
    assert shards["qkv"] == {"kernel": {(16, 3, 1, 16)}, "bias": {(3, 1, 16)}}
    assert shards["proj"] == {"kernel": {(1, 16, 32)}, "bias": {(32,)}}


class Uneven(Method):
    """A method whose examples score different numbers of values: what accumulation must get right."""

    def __init__(self) -> None:
        pass

    loss_weights = {"loss": 0.7, "other": 0.3}  # noqa: RUF012
    module = rules = flops = None

    def corrupt(self, keys, batch, variables, train=True):
        return {"x": batch["image"].astype(jnp.float32).mean((1, 2)) / 255, "n": batch["label"]}

    def forward(self, variables, view, keys, train):
        return {"y": view["x"] @ variables.params["w"]}

    def loss(self, outputs, view):
        error = jnp.square(outputs["y"] - 1.0)
        scored = jnp.arange(error.shape[1]) < view["n"][:, None]
        ones = jnp.ones(len(error))
        return {
            "loss": (jnp.sum(error * scored, 1), jnp.sum(scored, 1).astype(jnp.float32)),
            "other": (jnp.sum(jnp.abs(outputs["y"]), 1), ones),
            "metric": (ones, 2 * ones),
        }


Uneven.__abstractmethods__ = frozenset()


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_is_exact_for_uneven_counts(parts: int) -> None:
    method, params = Uneven(), {"w": jax.random.normal(jax.random.key(0), (3, 5))}
    data = batch(16)
    data["valid"][13:] = False
    data = jax.tree.map(jnp.asarray, data)
    whole, metrics, _ = gradients(method, Variables(params), data, parts=1, seed=0)
    divided, same, _ = gradients(method, Variables(params), data, parts=parts, seed=0)
    np.testing.assert_allclose(divided["w"], whole["w"], rtol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-6)
    view = method.corrupt(None, data, Variables())
    total, count = method.loss(method.forward(Variables(params), view, None, True), view)["loss"]
    assert float(metrics["metric"]) == 0.5
    naive = np.mean([float(total[i : i + 2].sum() / max(1, count[i : i + 2].sum())) for i in range(0, 12, 2)])
    assert abs(naive - float(total[:13].sum() / count[:13].sum())) > 1e-3  # dividing per part would be wrong


def test_accumulation_of_a_real_method_and_moving_average() -> None:
    losses, state = train(mesh_of(2), steps=4, overrides={"optim.accumulation": 4, "optim.ema": 0.5})
    plain, _ = train(mesh_of(2), steps=4)
    np.testing.assert_allclose(losses, plain, rtol=1e-5)
    params, ema = (tree["head"]["kernel"] for tree in (state.params, state.ema))
    assert params.shape == ema.shape and np.abs(np.asarray(params - ema)).max() > 0


def test_all_devices_make_a_mesh() -> None:
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_the_count_the_rate_and_the_average_of_one_update() -> None:
    """Update 0 has the rate of step 0; the average keeps 0.9 of itself and takes a tenth of the new parameters."""
    config = small_config("mae", {"optim.ema": 0.9, "optim.lr": 1e-2, "schedule.warmup_steps": 0})
    method = build_method(config)
    mesh = mesh_of(1)
    optimiser = make_optimiser(
        config, method.rules, jax.eval_shape(method.init_params, jax.random.key(0)), 6.0
    )
    state = create_state(method, optimiser, Variables(), ema=True, mesh=mesh, seed=config.seed)
    before = jax.tree.map(np.asarray, state.params)
    step = make_train_step(method, optimiser, jax.eval_shape(lambda: state), mesh, config, 6.0)
    state, metrics = step(state, place(batch(16), batch_sharding(mesh)))
    assert int(state.step) == 1
    assert float(metrics["lr"]) == pytest.approx(1e-2, rel=1e-6) == float(learning_rate(0, config, 6.0))
    assert float(learning_rate(1, config, 6.0)) < 0.9999e-2
    for old, new, average in zip(
        jax.tree.leaves(before), jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True
    ):
        np.testing.assert_allclose(average, 0.9 * old + 0.1 * np.asarray(new), rtol=1e-5, atol=1e-8)
