"""AdamW by a method's rules, and the learning rate as a function of the step."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mim_jax.config.check import one_of
from mim_jax.config.schema import Config, resolved
from mim_jax.methods.rules import Rules, map_rules, names

LARS_TRUST = 0.001


def learning_rate(step: jax.Array, config: Config, steps_per_epoch: float) -> jax.Array:
    """The rate of update `step` (from 0): linear warm-up, cosine, optionally a tail at the minimum.

    `schedule.cosine_from`: "warmup" starts the cosine after the warm-up (MAE); "start" lets its clock run from 0, the
    warm-up replacing its beginning (timm, MaPeT; docs/papers/mapet.md 9). `schedule.per_epoch` holds the rate for an epoch.
    """
    s, peak = config.schedule, resolved(config.optim.lr)
    warmup = resolved(s.warmup_steps)
    start = float(warmup) if s.cosine_from == "warmup" else 0.0
    done, left = _clock(step, s.epochs, steps_per_epoch, held=s.per_epoch)
    remaining = jnp.clip(left / max(s.epochs * steps_per_epoch - start, 1e-9), 0.0, 1.0)
    # (1 + cos(pi x)) / 2 with x = 1 - remaining; written so, it would lose all its digits at the end of a run in float32.
    cosine = s.min_lr + (peak - s.min_lr) * jnp.square(jnp.sin(0.5 * jnp.pi * remaining))
    rising = s.warmup_lr + done * (peak - s.warmup_lr) / max(warmup, 1e-9)
    return jnp.where(done < warmup, rising, cosine)


def _clock(
    step: jax.Array, epochs: float, steps_per_epoch: float, *, held: bool
) -> tuple[jax.Array, jax.Array]:
    """Steps done and steps left of `epochs`, float32 at least; held: as they were when the epoch of `step` began.

    Whole numbers are subtracted before anything is rounded to float32: half a million steps have no digit left for a fraction.
    """
    wide = jnp.promote_types(jnp.result_type(float), jnp.float32)
    if held:
        # The first step of every epoch; the small term keeps step 3 of 1 / 3 step an epoch in epoch 1.
        starts = np.ceil(np.arange(1, math.ceil(epochs) + 1) * steps_per_epoch - 1e-6).astype(np.int32)
        epoch = jnp.searchsorted(starts, step, side="right").astype(wide)
        return epoch * steps_per_epoch, (epochs - epoch) * steps_per_epoch
    whole = math.floor(epochs * steps_per_epoch)
    fraction = epochs * steps_per_epoch - whole
    return jnp.asarray(step, wide), jnp.asarray(whole - step, wide) + fraction


def make_optimiser(
    config: Config, rules: Rules, params: Any, steps_per_epoch: float
) -> optax.GradientTransformation:
    """The update by a method's rules; frozen parameters neither move, nor count, nor have moments.

    adamw: clip by global norm, Adam, decoupled decay by rule, learning rate by layer. lars: that of MoCo v3, where
    one-dimensional parameters take the plain gradient and the rate comes after the momentum (`optax.lars` applies it
    before, which differs where the rate changes).

    Args:
        params: the parameters or their shapes; only names matter.
    """
    o = config.optim

    def rate(step: jax.Array) -> jax.Array:
        return learning_rate(step, config, steps_per_epoch)

    def decayed(tree: Any) -> Any:
        return map_rules(rules.decay, tree)

    def matrices(tree: Any) -> Any:
        return jax.tree.map(lambda leaf, name: leaf.ndim > 1 and not name.endswith("bias"), tree, names(tree))

    def by_layer(updates: Any, _: Any) -> Any:
        ids = map_rules(rules.layers, updates)
        return jax.tree.map(lambda u, id: u * o.layer_decay ** (rules.last_layer - id), updates, ids)

    parts = [] if o.clip_norm is None else [optax.clip_by_global_norm(o.clip_norm)]
    if one_of("config.optim.name", o.name, ("adamw", "lars")) == "adamw":
        parts += [
            optax.scale_by_adam(o.beta1, o.beta2, o.eps),
            optax.add_decayed_weights(o.weight_decay, decayed),
        ]
    else:
        parts += [
            optax.add_decayed_weights(o.weight_decay, matrices),
            optax.masked(optax.scale_by_trust_ratio(trust_coefficient=LARS_TRUST), matrices),
            optax.trace(o.momentum),
        ]
    if o.layer_decay != 1.0:
        parts.append(optax.stateless(by_layer))
    update = optax.chain(*parts, optax.scale_by_learning_rate(rate))
    frozen = map_rules(rules.frozen, params)
    if not any(jax.tree.leaves(frozen)):
        return update
    labels = jax.tree.map(lambda still: "frozen" if still else "trained", frozen)
    return optax.partition({"trained": update, "frozen": optax.set_to_zero()}, labels)
