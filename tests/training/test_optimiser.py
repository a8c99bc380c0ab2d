"""Learning rates and AdamW against the official values and torch's rule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_config

from mim_jax.config.schema import Config
from mim_jax.methods.rules import Rules, ones
from mim_jax.training.optimiser import learning_rate, make_optimiser
from tests.conftest import official_optimisers


def schedule(config: Config, *, epochs: float, warmup: int, lr: float, **more) -> Config:
    """One step an epoch."""
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, lr=lr),
        schedule=dataclasses.replace(
            config.schedule, epochs=epochs, steps=int(epochs), warmup_steps=warmup, **more
        ),
    )


def rates(config: Config, epochs: list[float], steps_per_epoch: float = 1000.0) -> np.ndarray:
    scaled = dataclasses.replace(
        config,
        schedule=dataclasses.replace(
            config.schedule, warmup_steps=round(config.schedule.warmup_steps * steps_per_epoch)
        ),
    )
    with jax.enable_x64(True):
        return np.array([float(learning_rate(e * steps_per_epoch, scaled, steps_per_epoch)) for e in epochs])


def test_mapet_rule_of_the_paper() -> None:
    config = schedule(
        small_config(), epochs=300, warmup=10, lr=1.5e-3, warmup_lr=1e-6, min_lr=1e-5, cosine_from="start"
    )
    expected = {
        0: 1e-6,
        1: 1.509e-4,
        5: 7.505e-4,
        9: 1.3501e-3,
        10: 1.49592e-3,
        50: 1.40019e-3,
        150: 7.55e-4,
        299: 1.00408e-5,
        305: 1e-5,
    }
    np.testing.assert_allclose(rates(config, list(expected)), list(expected.values()), rtol=5e-6)


def test_per_epoch_holds_the_rate() -> None:
    config = schedule(
        small_config(),
        epochs=300,
        warmup=10,
        lr=1.5e-3,
        warmup_lr=1e-6,
        min_lr=1e-5,
        cosine_from="start",
        per_epoch=True,
    )
    held = rates(config, [1.0, 1.3, 1.999, 2.0])
    assert held[0] == held[1] == held[2] < held[3]
    assert held[0] == pytest.approx(1.509e-4, rel=1e-9)


@pytest.mark.parametrize("per_epoch", [False, True])
def test_the_end_of_the_cosine_keeps_its_digits_in_float32(per_epoch: bool) -> None:
    """At 1599.9 of 1600 epochs of ImageNet, 500,400 steps, the float32 rate is the float64 one to 1e-6 of itself."""
    per_epoch_steps = 312.75
    config = schedule(
        small_config(),
        epochs=1600,
        warmup=40,
        lr=2.4e-3,
        min_lr=0.0,
        cosine_from="warmup",
        per_epoch=per_epoch,
    )
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, warmup_steps=12510))
    steps = [12510, 250_200, 499_000, 500_086, 500_087, 500_368, 500_398, 500_399]
    compiled = jax.jit(lambda step: learning_rate(step, config, per_epoch_steps))
    ours = np.array([float(compiled(jnp.int32(step))) for step in steps])
    epochs = np.floor(np.array(steps) / per_epoch_steps) if per_epoch else np.array(steps) / per_epoch_steps
    exact = 2.4e-3 * np.sin(0.5 * np.pi * np.clip((1600 - epochs) / 1560, 0, 1)) ** 2
    np.testing.assert_allclose(ours, exact, rtol=1e-6)


def test_official_rates() -> None:
    official = official_optimisers()
    for case in official["mapet"]["lr"]:
        config = schedule(
            small_config(),
            epochs=case["epochs"],
            warmup=case["warmup_epochs"],
            lr=case["peak_lr"],
            warmup_lr=case["warmup_lr"],
            min_lr=case["min_lr"],
            cosine_from="start",
        )
        points = np.array(case["points"])
        np.testing.assert_allclose(rates(config, list(points[:, 0])), points[:, 1], rtol=1e-9)
    for case in official["mae"]["lr"]:
        config = schedule(
            small_config(),
            epochs=case["epochs"],
            warmup=case["warmup_epochs"],
            lr=case["base_lr"],
            warmup_lr=0.0,
            min_lr=case["min_lr"],
            cosine_from="warmup",
        )
        points = [(p[0], p[1]) for p in case["points"]]
        np.testing.assert_allclose(rates(config, [p[0] for p in points]), [p[1] for p in points], rtol=1e-9)


def test_the_cosine_of_simmims_release() -> None:
    """Per update, the warm-up in place of the cosine's beginning. The release's updates run one step behind this rule."""
    for case in official_optimisers()["simmim"]["lr"]:
        if case["schedule"] != "cosine":
            continue  # its step schedule is not ours (configs/simmim.py)
        scale = case["batch_total"] / 512
        config = schedule(
            small_config(),
            epochs=case["epochs"],
            warmup=case["warmup_epochs"],
            lr=scale * case["base_lr"],
            warmup_lr=scale * case["warmup_lr"],
            min_lr=scale * case["min_lr"],
            cosine_from="start",
        )
        per_epoch = float(case["iters_per_epoch"])
        points = [(step / per_epoch, rate) for step, rate in case["rule_points"]]
        ours = rates(config, [epoch for epoch, _ in points], per_epoch)
        np.testing.assert_allclose(ours, [rate for _, rate in points], rtol=1e-9)


RULES = Rules(
    init=((".", ones),), decay=(("kernel$", True), (".", False)), frozen=(("^held/", True), (".", False))
)
PARAMS = {
    "a": {"kernel": jnp.asarray([[3.0, 4.0]]), "bias": jnp.asarray([1.0])},
    "held": {"kernel": jnp.asarray([2.0])},
}
GRADS = {
    "a": {"kernel": jnp.asarray([[0.6, 0.8]]), "bias": jnp.asarray([2.0])},
    "held": {"kernel": jnp.asarray([100.0])},
}


def updated(clip: float | None, steps: int = 3) -> dict:
    config = schedule(small_config(), epochs=10, warmup=0, lr=0.1, min_lr=0.1)
    config = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, clip_norm=clip, weight_decay=0.05)
    )
    optimiser = make_optimiser(config, RULES, PARAMS, 1.0)
    params, state = PARAMS, optimiser.init(PARAMS)
    for _ in range(steps):
        updates, state = optimiser.update(GRADS, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.slow
def test_frozen_parameters_neither_move_nor_count_in_the_norm() -> None:
    assert float(updated(None)["held"]["kernel"][0]) == 2.0
    with_held = updated(clip=0.5)
    norm = np.sqrt(0.36 + 0.64 + 4.0)
    # Adam's first steps do not depend on the gradient's scale, but epsilon does not matter here either way:
    # what must hold is that the huge frozen gradient did not crush the others.
    assert norm > 0.5 and abs(float(with_held["a"]["bias"][0]) - 0.7) < 1e-3


def torch_groups(torch, rates: dict[str, float], decays: dict[str, float]):
    """The parameters "a/kernel" and "a/bias" for torch's AdamW: name -> tensor, and a group for each."""
    tensors = {
        "kernel": torch.nn.Parameter(torch.tensor([[3.0, 4.0]])),
        "bias": torch.nn.Parameter(torch.tensor([1.0])),
    }
    groups = [{"params": [t], "lr": rates[n], "weight_decay": decays[n]} for n, t in tensors.items()]
    return tensors, groups


@pytest.mark.slow
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_adamw_is_torchs(layer_decay: float) -> None:
    """Gradients that change sign and size, betas that differ, an epsilon that matters, decay scaled by the layer's rate."""
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    options = dict(beta1=0.8, beta2=0.95, eps=1e-2, weight_decay=0.3, layer_decay=layer_decay)
    config = schedule(small_config(), epochs=10, warmup=0, lr=0.1, min_lr=0.1)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, clip_norm=None, **options))
    rules = dataclasses.replace(RULES, layers=(("kernel$", 1), (".", 3)), last_layer=3)
    optimiser = make_optimiser(config, rules, PARAMS, 1.0)
    params, state = PARAMS, optimiser.init(PARAMS)
    rates = {"kernel": 0.1 * layer_decay**2, "bias": 0.1}
    tensors, groups = torch_groups(torch, rates, {"kernel": 0.3, "bias": 0.0})
    oracle = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-2)
    for step in range(6):
        factor = np.float32([1.0, -0.3, 0.02, 0.5, -1.0, 0.1][step])
        updates, state = optimiser.update(jax.tree.map(lambda g, f=factor: g * f, GRADS), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(np.asarray(GRADS["a"][name]) * factor)
        oracle.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(params["a"][name], tensor.detach().numpy(), rtol=1e-5)
