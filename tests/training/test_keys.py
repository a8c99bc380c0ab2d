"""Randomness is a function of (seed, purpose, epoch, example), and of each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import batch, small_method

from mim_jax.keys import Purpose, example_keys
from mim_jax.methods import Variables
from mim_jax.training.step import term_sums


def words(seed: int = 0, purpose: Purpose = Purpose.CORRUPT, epoch=(0, 0, 1, 1), index=(0, 1, 0, 1)):
    keys = example_keys(seed, purpose, jnp.asarray(epoch), jnp.asarray(index))
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()]


@pytest.mark.slow
def test_every_argument_matters_and_nothing_else() -> None:
    assert len(set(words())) == 4  # epoch and index
    assert words() == words()
    everything = words() + words(seed=1)
    for purpose in (Purpose.FORWARD, Purpose.HELDOUT):
        everything += words(purpose=purpose)
    assert len(set(everything)) == 16
    assert words(epoch=(0, 1), index=(1, 0))[0] != words(epoch=(0, 1), index=(1, 0))[1]  # not their sum
    # Place in the batch and its size change no key.
    assert words(epoch=(1, 0, 0), index=(1, 7, 0))[0] == words()[3]


def test_keys_are_those_of_earlier_versions() -> None:
    """A resumed run draws what it would have drawn: these words may never change."""
    assert words(seed=3)[2] == (20958803, 1257672766)


@pytest.mark.slow
class Spy:
    """A method that says whether corrupt and forward were given the same keys."""

    def corrupt(self, keys, data, variables, train):
        return {"keys": jax.random.key_data(keys)}

    def forward(self, variables, view, keys, train):
        return {"keys": jax.random.key_data(keys)}

    def loss(self, outputs, view):
        same = jnp.all(outputs["keys"] == view["keys"], axis=-1)
        return {"same": (same.astype(jnp.float32), jnp.ones(len(same)))}


def test_what_is_hidden_and_what_is_dropped_have_keys_of_their_own() -> None:
    same, count = term_sums(Spy(), Variables(), batch(8), 0)[0]["same"]
    assert (float(same), float(count)) == (0.0, 8.0)


@pytest.mark.parametrize("file", ["mae", "mapet", "beyond_masking"])
def test_another_epoch_draws_another_corruption(file: str) -> None:
    """The train step's own keys: the same examples in another epoch have other masks or orders, and so another loss."""
    more = {"model.image_size": 28} if file == "beyond_masking" else {}
    method = small_method(file, {"model.drop_path": 0.0, **more})
    params = jax.jit(method.init_params)(jax.random.key(0))
    params = jax.tree.map(
        lambda p: p + 0.05 * np.cos(np.arange(p.size, dtype=np.float32)).reshape(p.shape), params
    )
    side = method.view(True).keys["image"].shape[0]
    variables = method.prepare(lambda: [batch(64, side)["image"]], 0).replace(params=params)
    run = jax.jit(lambda data: term_sums(method, variables, data, 0)[0])
    data = batch(8, side)
    first, again, later = run(data), run(data), run({**data, "epoch": data["epoch"] + 1})
    assert all(first[name][0] == again[name][0] for name in first)
    assert all(first[name][0] != later[name][0] for name in method.loss_weights)
