"""AdamW by a method's rules, and the learning rate as a function of the step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mim_jax.config.check import one_of
from mim_jax.config.schema import Config, resolved
from mim_jax.methods.rules import Rules, map_rules

LARS_TRUST = 0.001


def learning_rate(step: jax.Array, config: Config, steps_per_epoch: float) -> jax.Array:
    """The rate of update `step` (from 0): linear warm-up, cosine, optionally a tail at the minimum.

    `schedule.cosine_from`: "warmup" starts the cosine after the warm-up (MAE); "start" lets its clock run from 0, the
    warm-up replacing its beginning (timm, MaPeT; spec mapet.md 9). `schedule.per_epoch` holds the rate for an epoch.
    """
    s, peak = config.schedule, resolved(config.optim.lr)
    wide = jnp.promote_types(jnp.result_type(float), jnp.float32)
    clock = jnp.asarray(step, wide)
    if s.per_epoch:  # the small term keeps 3 * (1 / 3) in epoch 1
        clock = jnp.floor(clock / steps_per_epoch + 1e-6) * steps_per_epoch
    length, warmup = s.epochs * steps_per_epoch, float(resolved(s.warmup_steps))
    start = warmup if s.cosine_from == "warmup" else 0.0
    progress = jnp.clip((clock - start) / max(length - start, 1e-9), 0.0, 1.0)
    cosine = s.min_lr + 0.5 * (peak - s.min_lr) * (1.0 + jnp.cos(jnp.pi * progress))
    rising = s.warmup_lr + clock * (peak - s.warmup_lr) / max(warmup, 1e-9)
    return jnp.where(clock < warmup, rising, cosine)


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
        return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)

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
