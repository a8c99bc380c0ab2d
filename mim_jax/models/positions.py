"""Position information: sin-cos tables, relative position bias, resizing a learned table to another grid."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Int32

from mim_jax.models.layers import uninitialised


def _sin_cos(positions: np.ndarray, width: int) -> np.ndarray:
    """[n] to [n, width]: a block of sines, then a block of cosines (MAE's layout)."""
    frequencies = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angles = positions[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(grid: tuple[int, int], width: int) -> Float64[np.ndarray, "{grid[0]*grid[1]} {width}"]:
    """MAE's fixed table (docs/papers/amt.md 1.2): first half COLUMN, second half ROW.

    Raises:
        ValueError: if the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"2-D sin-cos positions need a width that is a multiple of 4, got {width}")
    row, column = np.indices(grid, dtype=np.float64)
    return np.concatenate([_sin_cos(column.ravel(), width // 2), _sin_cos(row.ravel(), width // 2)], axis=1)


def sincos_1d(length: int, width: int) -> Float64[np.ndarray, "{length} {width}"]:
    """Beyond Masking's table over the raster index (docs/papers/beyond_masking.md A3.5): sine and cosine interleaved."""
    dims = np.arange(width)
    angles = np.arange(length)[:, None] / 10000.0 ** (2 * (dims // 2) / width)
    return np.where(dims % 2 == 0, np.sin(angles), np.cos(angles))


def relative_index(grid: tuple[int, int], cls: bool) -> Int32[np.ndarray, "tokens tokens"]:
    """Rows of the bias table for every (query, key); the offset is query minus key.

    With CLS the last three rows of the table are CLS->patch, patch->CLS and CLS->CLS (BEiT's layout).
    """
    rows, columns = grid
    place = np.moveaxis(np.indices(grid), 0, -1).reshape(-1, 2)
    offset = place[:, None] - place[None, :] + np.array([rows - 1, columns - 1])
    index = offset[..., 0] * (2 * columns - 1) + offset[..., 1]
    if cls:
        entries = (2 * rows - 1) * (2 * columns - 1)
        index = np.pad(index, ((1, 0), (1, 0)))
        index[0, :], index[:, 0], index[0, 0] = entries, entries + 1, entries + 2
    return index.astype(np.int32)


class RelativePositionBias(nn.Module):
    """A learned bias per head and offset."""

    grid: tuple[int, int]
    heads: int
    cls: bool

    @nn.compact
    def __call__(self) -> Float[Array, "{self.heads} tokens tokens"]:
        rows, columns = self.grid
        entries = (2 * rows - 1) * (2 * columns - 1) + (3 if self.cls else 0)
        table = self.param("table", uninitialised, (entries, self.heads))
        return table[relative_index(self.grid, self.cls)].transpose(2, 0, 1)


def bias_of_tokens(
    bias: Float[Array, "heads tokens tokens"],
    token_index: Int[Array, "batch chosen"] | None,
    queries: int | None,
) -> Float[Array, "batch heads queries chosen"] | Float[Array, "heads queries tokens"]:
    """A relative bias for tokens that are not all of an image's in raster order.

    Args:
        bias: for all tokens.
        token_index: as in `TransformerEncoder.apply_blocks`; None = all, in order.
        queries: the last so many tokens are queries; None = all.
    """
    if token_index is None:
        return bias if queries is None else bias[:, bias.shape[1] - queries :]
    query_index = token_index if queries is None else token_index[:, token_index.shape[1] - queries :]
    return jax.vmap(lambda q, k: bias[:, q[:, None], k[None, :]])(query_index, token_index)


def bicubic_weights(old: int, new: int) -> Float64[np.ndarray, "{new} {old}"]:
    """Torch's bicubic interpolation along one axis (a = -0.75, half-pixel centres, no antialiasing)."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        neighbour = np.floor(centres) + offset
        distance = np.abs(centres - neighbour)
        inner = (1.25 * distance - 2.25) * distance**2 + 1.0
        outer = ((-0.75 * distance + 3.75) * distance - 6.0) * distance + 3.0
        inside = np.clip(neighbour, 0, old - 1).astype(int)
        np.add.at(weights, (np.arange(new), inside), np.where(distance <= 1, inner, outer))
    return weights


def _resize_grid(values: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """[rows * columns, D] of one grid to another one."""
    if old == new:
        return values
    rows, columns = (
        jnp.asarray(bicubic_weights(*sides), values.dtype) for sides in zip(old, new, strict=True)
    )
    resized = jnp.einsum(
        "ia,jb,abd->ijd", rows, columns, values.reshape(*old, -1), precision=jax.lax.Precision.HIGHEST
    )
    return resized.reshape(new[0] * new[1], -1)


def resize_positions(
    table: Float[Array | np.ndarray, "1 tokens dim"],
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    prefix: int = 1,
) -> Float[Array, "1 {prefix+new[0]*new[1]} dim"]:
    """A position table for another grid; the prefix (CLS) stays.

    Args:
        old, new: grids (rows, columns).
    """
    if table.shape[1] != prefix + old[0] * old[1]:
        raise ValueError(
            f"a table of {table.shape[1]} positions does not belong to a grid of {old} with {prefix} before it"
        )
    resized = _resize_grid(jnp.asarray(table[0, prefix:]), old, new)
    return jnp.concatenate([table[:, :prefix], resized[None]], axis=1)


def resize_relative_table(
    table: Float[Array | np.ndarray, "entries heads"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "_ heads"]:
    """A table of relative position biases for another grid or window; the entries of CLS stay.

    Offsets are places of a grid of 2 rows - 1 by 2 columns - 1, which is resized as an image is (timm's simple form).
    """
    old_offsets, new_offsets = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old, new))
    entries = old_offsets[0] * old_offsets[1]
    if len(table) not in (entries, entries + 3):
        raise ValueError(f"a table of {len(table)} relative positions does not belong to a grid of {old}")
    return jnp.concatenate(
        [_resize_grid(jnp.asarray(table[:entries]), old_offsets, new_offsets), table[entries:]]
    )
