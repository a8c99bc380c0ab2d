"""Weights as files: what comes back, what is refused, and in which words."""

import hashlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from mim_jax.data import DataError
from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import fit, read_weights, write_weights

TENSORS = {
    "blocks.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2.0], np.float16),
    "count": np.array(7, np.int64),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
}
SHAPES = {
    "head": {"kernel": jax.ShapeDtypeStruct((3, 2), jnp.float32), "bias": jax.ShapeDtypeStruct((2,), jnp.float32)},
    "norm": {"scale": jax.ShapeDtypeStruct((3,), jnp.float32)},
}  # fmt: skip


def weights(**changes) -> dict:
    tree = {
        "head": {"kernel": np.linspace(0.0, 1.0, 6).reshape(3, 2), "bias": np.ones(2, np.float16)},
        "norm": {"scale": np.ones(3)},
    }
    return tree | changes


def said(path: Path) -> str:
    """What reading says; one line."""
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    write_weights(path, TENSORS, {"source": "a test"})
    back = read_weights(path)
    assert set(back) == set(TENSORS)
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(back[name], value)
        assert back[name].dtype == value.dtype and back[name].shape == value.shape
    with safe_open(path, framework="np") as opened:
        assert opened.metadata() == {"source": "a test"}
    assert list(tmp_path.iterdir()) == [path]  # nothing temporary stays


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    write_weights(path, {"a": np.array([1.0, 0.3333], ml_dtypes.bfloat16)})
    back = read_weights(path)["a"]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, np.array([1.0, 0.33398438], np.float32))


def test_a_type_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "eight.safetensors"
    header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    assert "of a type that cannot be read here" in said(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl"])
def test_pickles_are_refused_unopened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    message = said(path)
    assert f"python -m mim_jax.convert_torch {path} {tmp_path / 'model.safetensors'}" in message


def test_other_paths_are_refused(tmp_path: Path) -> None:
    assert said(tmp_path / "none.safetensors").startswith("there is no file")
    assert "is a folder" in said(tmp_path)
    (tmp_path / "weights.npz").write_bytes(b"")
    assert "read from a .safetensors file" in said(tmp_path / "weights.npz")
    assert issubclass(WeightsError, DataError)  # the front door prints it as a sentence


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "some.safetensors"
    write_weights(path, TENSORS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "damaged or no safetensors file" in said(path)


def test_something_else_under_the_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.safetensors"
    path.write_text("<html>404: not found, this is a page and no file of weights</html>")
    assert "damaged or no safetensors file" in said(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    write_weights(path, TENSORS)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="cannot be written"):
        write_weights(path, {"a": np.array(["a string"])})
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(WeightsError, match="cannot be written"):
        write_weights(tmp_path / "no" / "folder.safetensors", TENSORS)
    with pytest.raises(WeightsError, match=r"to a \.safetensors file"):
        write_weights(tmp_path / "model.pt", TENSORS)


def test_fit_casts_to_the_networks_types() -> None:
    params = fit(SHAPES, weights(), "x")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert jax.tree.structure(params) == jax.tree.structure(SHAPES)


def test_attention_is_cut_into_heads_and_only_where_it_is_a_matrix_of_that_shape() -> None:
    """q, k, v and their heads are blocks of a matrix's columns, in this order; the output projection's heads, of its rows."""
    shapes = {
        "attn": {
            "qkv": {"kernel": jax.ShapeDtypeStruct((6, 3, 2, 3), np.float32), "q_bias": jax.ShapeDtypeStruct((2, 3), np.float32)},
            "proj": {"kernel": jax.ShapeDtypeStruct((2, 3, 6), np.float32), "bias": jax.ShapeDtypeStruct((6,), np.float32)},
        }
    }  # fmt: skip
    qkv, proj = np.arange(108.0).reshape(6, 18), np.arange(36.0).reshape(6, 6)
    tree = {
        "attn": {
            "qkv": {"kernel": qkv, "q_bias": np.arange(6.0)},
            "proj": {"kernel": proj, "bias": np.arange(6.0)},
        }
    }
    attention = fit(shapes, tree, "x")["attn"]
    assert (
        attention["qkv"]["kernel"][5, 2, 1, 0] == qkv[5, 2 * 6 + 1 * 3 + 0]
        and attention["qkv"]["q_bias"][1, 2] == 5
    )
    assert attention["proj"]["kernel"][1, 2, 4] == proj[1 * 3 + 2, 4] and attention["proj"]["bias"].shape == (
        6,
    )
    jax.tree.map(np.testing.assert_array_equal, fit(shapes, {"attn": attention}, "x")["attn"], attention)
    tree["attn"]["qkv"]["kernel"] = qkv.T
    with pytest.raises(
        WeightsError, match=re.escape("attn/qkv/kernel [18, 6] where [6, 3, 2, 3] is expected")
    ):
        fit(shapes, tree, "x")


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        (weights(norm={}), "norm/scale is missing"),
        (weights(extra={"kernel": np.ones(1)}), "extra/kernel is without a place"),
        (
            weights(head={"kernel": np.ones((2, 3)), "bias": np.ones(2)}),
            "head/kernel [2, 3] where [3, 2] is expected is of another shape",
        ),
        (
            {"a": {str(index): np.ones(1) for index in range(9)}},
            "head/kernel, head/bias, norm/scale are missing; a/0, a/1, a/2 and 6 more are without a place",
        ),
    ],
)
def test_fit_says_what_is_wrong(tree: dict, fault: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(f"the weights of x do not fit this network: {fault}")):
        fit(SHAPES, tree, "x")


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        (weights(norm={"scale": np.array([1.0, np.nan, 1.0])}), "norm/scale (NaN in 1 of 3) is not finite"),
        (
            weights(norm={"scale": np.array([1.0, np.inf, -np.inf])}),
            "norm/scale (infinite in 2 of 3) is not finite",
        ),
        (
            weights(norm={"scale": np.array([1.0, 1e300, 1.0])}),
            "norm/scale (infinite in 1 of 3, beyond float32) is not finite",
        ),
        (weights(norm={"scale": np.array([1, 2, 3])}), "norm/scale (int64) is no floating-point numbers"),
        (
            weights(norm={"scale": np.array([True, False, True])}),
            "norm/scale (bool) is no floating-point numbers",
        ),
        (
            weights(head={"kernel": np.full((3, 2), 0.25), "bias": np.zeros(2)}),
            "head/kernel (all 0.25) is of one value",
        ),
        (
            weights(head={"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}),
            "head/kernel (all 0) is of one value",
        ),
    ],
)
def test_weights_that_cannot_be_trained_ones_are_named(tree: dict, fault: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(f"the weights of x cannot be used: {fault}")):
        fit(SHAPES, tree, "x")
