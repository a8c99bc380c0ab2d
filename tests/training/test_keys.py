"""Randomness is a function of (seed, purpose, draw, example), and of each of them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import batch, small_method

from mim_jax.training.keys import Purpose, example_keys
from mim_jax.training.step import term_sums


def words(seed: int = 0, purpose: Purpose = Purpose.CORRUPT, draw=(0, 0, 1, 1), index=(0, 1, 0, 1)):
    keys = example_keys(seed, purpose, jnp.asarray(draw), jnp.asarray(index))
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()]


@pytest.mark.slow
def test_every_argument_matters_and_nothing_else() -> None:
    assert len(set(words())) == 4  # draw and index
    assert words() == words()
    everything = words() + words(seed=1)
    for purpose in (Purpose.FORWARD, Purpose.HELDOUT):
        everything += words(purpose=purpose)
    assert len(set(everything)) == 16
    assert words(draw=(0, 1), index=(1, 0))[0] != words(draw=(0, 1), index=(1, 0))[1]  # not their sum
    # Place in the batch and its size change no key.
    assert words(draw=(1, 0, 0), index=(1, 7, 0))[0] == words()[3]


def test_keys_are_those_of_earlier_versions() -> None:
    """A resumed run draws what it would have drawn: these words may never change."""
    assert words(seed=3)[2] == (20958803, 1257672766)


@pytest.mark.slow
class Spy:
    """A method that says whether corrupt and forward were given the same keys."""

    config = SimpleNamespace(seed=0)

    def corrupt(self, keys, data, artefacts):
        return {"keys": jax.random.key_data(keys)}

    def forward(self, params, view, keys, train):
        return {"keys": jax.random.key_data(keys)}

    def loss(self, outputs, view):
        same = jnp.all(outputs["keys"] == view["keys"], axis=-1)
        return {"same": (same.astype(jnp.float32), jnp.ones(len(same)))}

    def collect(self, artefacts, outputs):
        return artefacts


def test_what_is_hidden_and_what_is_dropped_have_keys_of_their_own() -> None:
    same, count = term_sums(Spy(), {}, batch(8), {})[0]["same"]
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
    held = method.prepare(lambda: [batch(64, method.input_spec.size[0])["image"]])
    run = jax.jit(lambda data: term_sums(method, params, data, held)[0])
    data = batch(8, method.input_spec.size[0])
    first, again, later = run(data), run(data), run({**data, "draw": data["draw"] + 1})
    assert all(first[name][0] == again[name][0] for name in first)
    assert all(first[name][0] != later[name][0] for name in method.loss_weights)
