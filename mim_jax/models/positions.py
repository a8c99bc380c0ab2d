"""Position information: sin-cos tables, relative position bias, resizing a learned table to another grid."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def _sin_cos(positions: np.ndarray, width: int) -> np.ndarray:
    """[n] to [n, width]: a block of sines, then a block of cosines (MAE's layout)."""
    frequencies = 10000.0 ** (-np.arange(width // 2) / (width / 2))
    angles = positions[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """MAE's fixed table (docs/papers/amt.md 1.2), float64 [rows * columns, width]: first half COLUMN, second half ROW.

    Raises:
        ValueError: if the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"2-D sin-cos positions need a width that is a multiple of 4, got {width}")
    row, column = np.indices(grid, dtype=np.float64)
    return np.concatenate([_sin_cos(column.ravel(), width // 2), _sin_cos(row.ravel(), width // 2)], axis=1)


def sincos_1d(length: int, width: int) -> np.ndarray:
    """Beyond Masking's table over the raster index (docs/papers/beyond_masking.md A3.5), float64 [length, width]: sine and cosine interleaved."""
    dims = np.arange(width)
    angles = np.arange(length)[:, None] / 10000.0 ** (2 * (dims // 2) / width)
    return np.where(dims % 2 == 0, np.sin(angles), np.cos(angles))


def relative_index(grid: tuple[int, int], cls: bool) -> np.ndarray:
    """Rows of the bias table for every (query, key), int32 [N, N]; the offset is query minus key.

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
    """A learned bias per head and offset; returns float [H, N, N]."""

    grid: tuple[int, int]
    heads: int
    cls: bool

    @nn.compact
    def __call__(self) -> jax.Array:
        rows, columns = self.grid
        entries = (2 * rows - 1) * (2 * columns - 1) + (3 if self.cls else 0)
        table = self.param("table", nn.initializers.zeros, (entries, self.heads))
        return table[relative_index(self.grid, self.cls)].transpose(2, 0, 1)


def bias_of_rows(bias: jax.Array, slots: jax.Array | None, queries: int | None) -> jax.Array:
    """A relative bias for rows that are not all slots in raster order.

    Args:
        bias: [H, N, N], for all slots.
        slots: int32 [B, R], the slot of every row; None = all of them, in order.
        queries: the last so many rows are queries; None = all.
    Returns:
        [B, H, queries, R], or [H, queries, N] without `slots`.
    """
    if slots is None:
        return bias if queries is None else bias[:, bias.shape[1] - queries :]
    asking = slots if queries is None else slots[:, slots.shape[1] - queries :]
    return jax.vmap(lambda q, k: bias[:, q[:, None], k[None, :]])(asking, slots)


def resize_positions(
    table: jax.Array, old: tuple[int, int], new: tuple[int, int], *, prefix: int = 1
) -> jax.Array:
    """Resizes a position table to another grid by antialiased bicubic interpolation; the prefix (CLS) rows stay.

    Args:
        table: [1, prefix + rows * columns, D].
        old, new: grids (rows, columns).
    Returns:
        [1, prefix + new rows * new columns, D].
    """
    if table.shape[1] != prefix + old[0] * old[1]:
        raise ValueError(
            f"a table of {table.shape[1]} positions does not belong to a grid of {old} with {prefix} before it"
        )
    if old == new:
        return table
    patches = table[0, prefix:].reshape(*old, -1)
    resized = jax.image.resize(patches, (*new, patches.shape[-1]), "cubic").reshape(1, new[0] * new[1], -1)
    return jnp.concatenate([table[:, :prefix], resized], axis=1)
