"""The small parts of every transformer here: dense, layer norm, GELU, MLP, LayerScale, drop path.

Parameters are float32 (or the precision given); `dtype` is that of the computation, None = that of the input.

The gradient of a parameter that is broadcast over batch and tokens is a sum over them, in the dtype in which the parameter
was broadcast. A running sum in bfloat16 stands still at 256 times its next summand, so parameters are broadcast in their own
precision (`add_parameter`, `broadcast_parameter`), and kernels have their gradients accumulated in it (`matmul`).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Shaped


def uninitialised(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Stands where a Flax module names an initialiser: modules declare shapes, and the rules of a method (`methods/rules.py`)
    say how every parameter is drawn, as the papers differ in that. NaN, for `jax.eval_shape(module.init, ...)` only.

    Raises:
        TypeError: a module is initialised for real.
    """
    if not isinstance(key, jax.core.Tracer):
        raise TypeError(
            "modules only declare their parameters: draw them by method.init_params, or read them from a file"
        )
    return jnp.full(shape, jnp.nan)


def wide_dtype(x: Float[Array, "..."]) -> jnp.dtype:
    """The dtype to accumulate values of `x` in: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def add_parameter(x: Float[Array, "*shape"], parameter: Float[Array, "*#shape"]) -> Float[Array, "*shape"]:
    """x + parameter (broadcast), added in float32 at least and rounded to the dtype of `x` once."""
    return (x.astype(wide_dtype(x)) + parameter).astype(x.dtype)


def broadcast_parameter(
    parameter: Float[Array, "..."], shape: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "..."]:
    """The parameter broadcast in its own precision, then in `dtype`."""
    return jnp.broadcast_to(parameter, shape).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Float[Array, "..."], kernel: Float[Array, "..."], axes: int = 1) -> Float[Array, "..."]:
    """x [..., *in] times kernel [*in, *out] of a wider dtype, in the dtype of `x`; `in` has so many axes.

    All three products (this one and the two of the backward pass) take inputs of the dtype of `x` and accumulate in float32.
    The kernel's gradient leaves the product in the kernel's dtype: it is neither rounded before it is summed over devices nor
    reduced in bfloat16.
    """
    return jnp.tensordot(x, kernel.astype(x.dtype), axes)


def _matmul_forward(
    x: jax.Array, kernel: jax.Array, axes: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, kernel, axes), (x, kernel)


def _matmul_backward(
    axes: int, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    leading = tuple(range(x.ndim - axes))
    outputs = tuple(range(len(leading), cotangent.ndim)), tuple(range(axes, kernel.ndim))
    to_input = jax.lax.dot_general(cotangent, kernel.astype(x.dtype), (outputs, ((), ())))
    to_kernel = jax.lax.dot_general(
        x, cotangent, ((leading, leading), ((), ())), preferred_element_type=kernel.dtype
    )
    return to_input, to_kernel


matmul.defvjp(_matmul_forward, _matmul_backward)


def dense(
    x: Float[Array, "..."],
    kernel: Float[Array, "..."],
    bias: Float[Array, "..."] | None,
    dtype: DTypeLike | None = None,
    axes: int = 1,
) -> Float[Array, "..."]:
    """x [..., *in] times kernel [*in, *out] plus bias [*out]; `in` has so many axes.

    dtype: of the computation; None = the common dtype of all three.

    In float32 (CPUs) the leading dimensions are flattened first: XLA's CPU compiler copies and transposes the gradient of a
    product over three dimensions (21 ms become 38 ms for a ViT's first MLP layer). In bfloat16 (accelerators) they are not:
    there the reshape is a copy (docs/decisions.md).
    """
    dtype = dtype or jnp.result_type(x, kernel, *([] if bias is None else [bias]))
    x = x.astype(dtype)
    if jnp.promote_types(dtype, kernel.dtype) != dtype:
        out = matmul(x, kernel, axes)
        return out if bias is None else add_parameter(out, bias)
    leading, inputs = x.shape[: x.ndim - axes], x.shape[x.ndim - axes :]
    out = jnp.tensordot(x.reshape(-1, *inputs), kernel.astype(dtype), axes)
    if bias is not None:
        out = out + bias.astype(dtype)
    return out.reshape(*leading, *kernel.shape[axes:])


def gather_tokens(
    x: Shaped[Array, "batch tokens dim"], index: Int[Array, "batch chosen"]
) -> Shaped[Array, "batch chosen dim"]:
    """The tokens (or patches) at `index`, an own one for every example."""
    return jnp.take_along_axis(x, index[..., None], axis=1)


class Dense(nn.Module):
    """A linear layer with kernel [in, out]."""

    features: int
    use_bias: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch {self.features}"]:
        kernel = self.param("kernel", uninitialised, (x.shape[-1], self.features))
        bias = self.param("bias", uninitialised, (self.features,)) if self.use_bias else None
        return dense(x, kernel, bias, self.dtype)


class LayerNorm(nn.Module):
    """Layer norm over the last axis; statistics in float32 at least, result in the computation's dtype."""

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        scale = self.param("scale", uninitialised, (x.shape[-1],))
        bias = self.param("bias", uninitialised, (x.shape[-1],))
        wide = x.astype(wide_dtype(x))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        out = centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
        return out.astype(self.dtype or x.dtype)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exact GELU by erf: as fast as the tanh form on CPU, where `jax.nn.gelu(approximate=False)` costs 1.7 times."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x sigmoid(1.702 x): what OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


class Mlp(nn.Module):
    """D -> hidden -> D; the activation is one of ACTIVATIONS."""

    hidden: int
    dtype: DTypeLike | None = None
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"model.activation is {' or '.join(ACTIVATIONS)}, not {self.activation!r}")
        hidden = ACTIVATIONS[self.activation](Dense(self.hidden, dtype=self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class LayerScale(nn.Module):
    """One learned factor per channel of a residual branch."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        gamma = self.param("gamma", uninitialised, (x.shape[-1],))
        return (x.astype(wide_dtype(x)) * gamma).astype(x.dtype)


def drop_path(
    branch: Float[Array, "batch tokens dim"], rate: float, keys: Key[Array, " batch"] | None, salt: int
) -> Float[Array, "batch tokens dim"]:
    """Drops a residual branch for whole examples, scaling the kept ones by 1 / (1 - rate).

    Args:
        keys: one per example; None in evaluation (nothing is dropped).
        salt: tells one branch of the network from another.
    """
    if keys is None or rate == 0.0:
        return branch
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, salt), 1.0 - rate))(keys)
    return jnp.where(keep[:, None, None], branch / (1.0 - rate), 0.0).astype(branch.dtype)


def split_over_examples(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """Activations on a mesh: each device keeps its own examples. Without a mesh nothing happens.

    Left alone, XLA may split small batches over channels instead, where parameters are split: it then moves activations, and sums
    partial products of them in bfloat16. With this, parameters go to where the examples are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "fsdp" not in mesh.axis_names:
        return x
    others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp"), *others))
