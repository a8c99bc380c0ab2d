"""Saving and restoring: bits, topologies, mismatches, what is kept, what is refused."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mim_jax.training.checkpoints import CheckpointError, Checkpoints
from mim_jax.training.checkpoints.leaves import flatten, specs_of, to_stored
from mim_jax.training.checkpoints.manifest import Manifest, compute_checksums, write_manifest

State = dict[str, Any]


def _mesh(devices: int) -> Mesh:
    return jax.make_mesh((devices,), ("fsdp",), (AxisType.Auto,), devices=jax.devices()[:devices])


def _place(state: State, mesh: Mesh, *, sharded: bool) -> State:
    def put(leaf: jax.Array) -> jax.Array:
        split = sharded and leaf.ndim and leaf.shape[0] % mesh.size == 0
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("fsdp") if split else PartitionSpec()))

    return jax.tree.map(put, state)


def _state(step: int) -> State:
    """Every kind of leaf a run may hold, all derived from the step."""
    params = {
        "block_00": {
            "kernel": jnp.arange(64.0).reshape(16, 4) + step,
            "bias": jnp.full(4, step, jnp.bfloat16),
        }
    }
    return {
        "step": jnp.int32(step),
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "artefacts": {
            "used": jnp.arange(8) % 3 == step % 3,
            "bank": jnp.zeros((0, 3)),
            "count": jnp.uint8(step),
        },
        "keys": {"one": jax.random.key(step), "rows": jax.random.split(jax.random.key(step, impl="rbg"), 8)},
        "ema": {},
        "nothing": (None, ()),
    }


def _abstract(state: State) -> State:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def _bits(leaf: jax.Array) -> tuple[str, tuple[int, ...], bytes]:
    data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return str(leaf.dtype), leaf.shape, np.asarray(data).tobytes()


def _assert_identical(found: State, expected: State) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert _bits(one) == _bits(other)


def _restored(checkpoints: Checkpoints, target: State) -> tuple[int, State]:
    found = checkpoints.restore(_abstract(target))
    assert found is not None
    return found


def _save_all(directory: Path, steps: list[int], **options: Any) -> None:
    with Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, _state(step))


def test_nothing_saved_is_none_and_makes_no_directory(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.restore({}) is None
        assert checkpoints.newest_good() is None
        assert checkpoints.steps() == []
        with pytest.raises(CheckpointError, match=r"no checkpoint in .*train first"):
            checkpoints.restore_partial({"params": {}})
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = _place(_state(7), _mesh(8), sharded=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state)
        step, found = _restored(checkpoints, state)
    assert step == 7
    _assert_identical(found, state)
    assert found["keys"]["rows"].sharding == state["keys"]["rows"].sharding


@pytest.mark.parametrize(
    ("before", "after"), [((8, True), (2, True)), ((2, True), (1, False)), ((1, False), (8, True))]
)
def test_restores_onto_another_mesh(
    tmp_path: Path, before: tuple[int, bool], after: tuple[int, bool]
) -> None:
    state = _place(_state(3), _mesh(before[0]), sharded=before[1])
    target = _place(_state(0), _mesh(after[0]), sharded=after[1])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        _, found = _restored(checkpoints, target)
    _assert_identical(found, state)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
    rows = 16 // after[0] if after[1] else 16
    assert found["params"]["block_00"]["kernel"].addressable_shards[0].data.shape == (rows, 4)


def _save_as_earlier_versions_did(directory: Path, name: str, step: int, state: State) -> None:
    leaves = flatten(state)
    with ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)) as orbax:
        orbax.save(directory / name / "arrays", args=ocp.args.PyTreeSave(to_stored(leaves)))
    files = compute_checksums(directory / name)
    write_manifest(directory / name, Manifest(step, specs_of(leaves), {"acc": 1.0}, files))


def test_checkpoints_of_earlier_versions_are_restored_and_kept(tmp_path: Path) -> None:
    """These had no notes of Orbax's in a step's directory, and 00000003.1 where step 3 was saved again."""
    _save_as_earlier_versions_did(tmp_path, "00000002", 2, _state(2))
    _save_as_earlier_versions_did(tmp_path, "00000003", 3, _state(7))
    _save_as_earlier_versions_did(tmp_path, "00000003.1", 3, _state(3))
    with Checkpoints(tmp_path, keep_last=1, best_metric="acc") as checkpoints:
        step, found = _restored(checkpoints, _state(0))
        assert step == 3
        _assert_identical(found, _state(3))
        checkpoints.save(4, found, {"acc": 0.5})
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]  # of the best, the later
        for step in (5, 6):
            checkpoints.save(step, found, {"acc": 2.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000006"]


def test_orbax_notes_are_not_needed(tmp_path: Path) -> None:
    _save_all(tmp_path, [1])
    (tmp_path / "00000001" / "_CHECKPOINT_METADATA").write_bytes(b"\0")
    (tmp_path / "00000001" / "commit_success.txt").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        _, found = _restored(checkpoints, _state(0))
        checkpoints.save(2, found)
    _assert_identical(found, _state(1))


def test_buffers_may_be_donated_once_save_returns(tmp_path: Path) -> None:
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jax.device_put(jnp.full(2_000_000, 5.0), NamedSharding(_mesh(8), PartitionSpec("fsdp")))
    target = _abstract({"x": array})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": array})
        for _ in range(5):
            array = update(array)
        array.block_until_ready()
        found = checkpoints.restore(target)
    assert found is not None
    assert np.unique(found[1]["x"]).tolist() == [5.0]


def test_partial_restore_needs_no_optimiser(tmp_path: Path) -> None:
    state = _state(4)
    _save_all(tmp_path, [2, 4])
    with Checkpoints(tmp_path) as checkpoints:
        step, found = checkpoints.restore_partial(_abstract({"params": state["params"]}))
        assert step == 4
        _assert_identical(found, {"params": state["params"]})
        step, found = checkpoints.restore_partial(_abstract({"params": state["params"]}), step=2)
        _assert_identical(found, {"params": _state(2)["params"]})
        with pytest.raises(CheckpointError, match=r"no checkpoint 3 in .*\(2, 4\)"):
            checkpoints.restore_partial({"params": {}}, step=3)
        with pytest.raises(CheckpointError, match=r"params/block_00/bias is bfloat16.* and absent here"):
            checkpoints.restore_partial({"params": {}})


def test_metadata_describes_without_reading_arrays(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, _state(5), {"eval/knn_top1": 0.5})
        checkpoints.wait()
        known = checkpoints.metadata(5)
        assert (known["step"], known["metrics"]) == (5, {"eval/knn_top1": 0.5})
        assert known["bytes"] > 64 * 4
        assert known["tree"]["params"]["block_00"]["kernel"] == jax.ShapeDtypeStruct((16, 4), jnp.float32)
        assert known["tree"]["keys"]["rows"].dtype == _state(5)["keys"]["rows"].dtype
        assert known["tree"]["opt_state"]["0"]["count"].dtype == jnp.int32
        # What metadata describes can be asked for, once it is told where to go.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), known["tree"])
        _, found = checkpoints.restore_partial({"keys": target["keys"]})
        _assert_identical(found, {"keys": _state(5)["keys"]})


def _with(state: State, **changed: Any) -> State:
    return _abstract(state) | changed


def test_another_model_is_named_and_never_a_fallback(tmp_path: Path) -> None:
    state = _state(2)
    here = state["step"].sharding
    _save_all(tmp_path, [1, 2])

    def leaf(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

    bias = leaf(4, dtype=jnp.bfloat16)
    cases = {
        r"params/block_00/kernel is float32\[16, 4\] in the checkpoint and float32\[16, 5\] here": _with(
            state, params={"block_00": {"kernel": leaf(16, 5), "bias": bias}}
        ),
        r"params/block_00/bias is bfloat16\[4\] in the checkpoint and float32\[4\] here": _with(
            state, params={"block_00": {"kernel": leaf(16, 4), "bias": leaf(4)}}
        ),
        r"ema/kernel is absent in the checkpoint and float32\[2\] here": _with(
            state, ema={"kernel": leaf(2)}
        ),
        r"artefacts/bank is float32\[0, 3\] in the checkpoint and absent here": _with(state, artefacts={}),
        "the target of step has no sharding": _with(state) | {"step": jax.ShapeDtypeStruct((), jnp.int32)},
    }
    with Checkpoints(tmp_path) as checkpoints:
        for message, target in cases.items():
            with pytest.raises(CheckpointError, match=message):
                checkpoints.restore(target)


def test_states_that_cannot_be_saved_are_named(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for message, state in {
            "lr is a float": {"lr": 0.1},
            "two leaves named 'a/b'": {"a": {"b": jnp.zeros(1)}, "a/b": jnp.zeros(1)},
            "without a name": jnp.zeros(1),
        }.items():
            with pytest.raises(CheckpointError, match=message):
                checkpoints.save(0, state)
        with pytest.raises(CheckpointError, match=r"give 0 or more"):
            checkpoints.save(-1, {"a": jnp.zeros(1)})
        assert checkpoints.steps() == []


def test_arguments_are_checked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for message, arguments, options in [
        ("keep_last=0", tmp_path, {"keep_last": 0}),
        ("keep_every=-1", tmp_path, {"keep_every": -1}),
        ("other storage has to be mounted", "s3://bucket/run", {}),
        ("is a file", tmp_path / "file", {}),
    ]:
        with pytest.raises(CheckpointError, match=message):
            Checkpoints(arguments, **options)  # type: ignore[arg-type]


def test_keeps_last_every_and_best(tmp_path: Path) -> None:
    values = [1.0, 9.0, float("nan"), 2.0, 9.0, 4.0, 5.0, 6.0]
    with Checkpoints(tmp_path / "best", keep_every=30, best_metric="acc") as checkpoints:
        for index, value in enumerate(values):
            checkpoints.save(10 * index, {"x": jnp.float32(index)}, {"acc": value})
        checkpoints.wait()
        assert checkpoints.steps() == [0, 30, 40, 60, 70]  # of two equally good ones the later
    with Checkpoints(tmp_path / "best", keep_every=30, best_metric="acc") as checkpoints:
        checkpoints.save(80, {"x": jnp.float32(8)}, {"loss": 1.0})  # what was saved before still counts
        checkpoints.wait()
        assert checkpoints.steps() == [0, 30, 40, 60, 70, 80]
        checkpoints.save(90, {"x": jnp.float32(9)}, {"acc": 10.0})
        checkpoints.wait()
        assert checkpoints.steps() == [0, 30, 60, 80, 90]
    with Checkpoints(tmp_path / "last", keep_last=1) as checkpoints:
        for step in range(3):
            checkpoints.save(step, {"x": jnp.float32(step)})
        checkpoints.wait()
        assert checkpoints.steps() == [2]


def test_a_step_is_saved_once_and_in_order(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"x": jnp.float32(5)})
        for step, reason in ((5, "step 5 is saved already"), (4, "step 4 is older than checkpoint 5")):
            with pytest.raises(CheckpointError, match=rf"{reason} in .*: restore before saving"):
                checkpoints.save(step, {"x": jnp.float32(step)})
