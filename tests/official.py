"""A fixture of a paper's own code in our layout and in one precision, with the tolerances of tests/fixtures/README.md."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.conftest import official

TOLERANCES = {"float64": (1e-9, 1e-9, 1e-8), "float32": (1e-4, 1e-5, 1e-3)}
"""Precision -> absolute of values, absolute of losses, gradients relative to each tensor's largest entry."""


HEAD_DIM = 8  # of every network in the fixtures


def split_heads(tree: Any, head_dim: int = HEAD_DIM) -> Any:
    """A tree of weights (or of gradients) with q, k, v and output projections that were matrices cut into heads."""

    def cut(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "attn/qkv" in name:
            wide = (3,) if name.endswith(("kernel", "/bias")) else ()
            return leaf.reshape(*leaf.shape[:-1], *wide, -1, head_dim)
        return leaf.reshape(-1, head_dim, leaf.shape[-1]) if name.endswith("attn/proj/kernel") else leaf

    return jax.tree_util.tree_map_with_path(cut, tree)


class Case:
    """The arrays of a file, its weights as our parameters, its images channels last."""

    def __init__(self, name: str, convert: Callable[[Any], Any], precision: str) -> None:
        self.f, self.convert, self.dtype = official(name), convert, np.dtype(precision)
        self.values, self.losses, self.gradients = TOLERANCES[precision]
        self.params = self.tree("w/", self.dtype)
        self.image = jnp.asarray(self.pixels("image").astype(self.dtype))

    def tree(self, prefix: str, dtype: Any) -> Any:
        """The arrays under a prefix as a tree of our parameters."""
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        flat = {key[len(prefix) :]: self.f[key] for key in self.f.files if key.startswith(prefix)}
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), split_heads(self.convert(flat)))

    def pixels(self, key: str) -> np.ndarray:
        """An array of images, [B, H, W, 3]."""
        return self.f[key].transpose(0, 2, 3, 1)

    def close(self, actual: Any, key: str, tolerance: float | None = None) -> None:
        """Our values are the file's, absolutely."""
        np.testing.assert_allclose(actual, self.f[key], rtol=0, atol=tolerance or self.values, err_msg=key)

    def same_gradients(self, ours: Any, theirs: Any) -> None:
        """Leaf by leaf for the leaves that the file has, relative to each tensor's largest entry."""
        flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(ours)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(theirs):
            name = jax.tree_util.keystr(path)
            error = np.abs(np.asarray(flat[name]) - np.asarray(leaf)).max() / np.abs(np.asarray(leaf)).max()
            assert error < self.gradients, (name, error)
