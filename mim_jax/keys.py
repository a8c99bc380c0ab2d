"""Randomness on the device: a function of (seed, purpose, which use of which example), not of devices, hosts or restarts."""

import enum

import jax


class Purpose(enum.IntEnum):
    """What a key is for; two purposes never share one."""

    INIT = 0
    CORRUPT = 1  # masks, orders, jitter of a training example
    FORWARD = 2  # drop path
    HELDOUT = 3  # masks and orders of a held-out example: the same at every evaluation


def purpose_key(seed: int, purpose: Purpose) -> jax.Array:
    """The key of a purpose."""
    return jax.random.fold_in(jax.random.key(seed), int(purpose))


def example_keys(seed: int, purpose: Purpose, epoch: jax.Array, index: jax.Array) -> jax.Array:
    """One typed key per example, [B].

    Args:
        epoch: int [B], how often the example was used before. It also tells apart two uses of one example in one step, where
            the batch is larger than the dataset.
        index: int [B], the example's position in its dataset.
    """
    key = purpose_key(seed, purpose)
    return jax.vmap(lambda d, i: jax.random.fold_in(jax.random.fold_in(key, d), i))(epoch, index)
