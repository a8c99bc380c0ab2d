"""The same batches for any number of hosts, from any step; evaluation; memory;
placement."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mim_jax.data import DataError, InputSpec, Loader, evaluation_batches, open_dataset, place

RANDOM = InputSpec((6, 6), "random_resized", flip=True)
WHOLE = InputSpec((8, 8), "none", flip=True)


def dataset(count=10, size=8):
    return open_dataset(f"synthetic:{count}:{size}", "train")


def equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def joined(parts):
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@pytest.mark.parametrize(
    "batch_size", [4, 12, 28]
)  # Inside an epoch of 10, across one, and above the data set.
@pytest.mark.parametrize("hosts", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_hosts(batch_size, hosts):
    with Loader(dataset(), RANDOM, batch_size=batch_size, seed=1) as one:
        loaders = [
            Loader(
                dataset(),
                RANDOM,
                batch_size=batch_size,
                seed=1,
                process_index=i,
                process_count=hosts,
                threads=i + 1,
            )
            for i in range(hosts)
        ]
        for step in range(6):
            equal(one.batch(step), joined([loader.batch(step) for loader in loaders]))
        for loader in loaders:
            loader.close()


def test_every_example_once_an_epoch_and_each_use_differs():
    with Loader(dataset(), RANDOM, batch_size=25, seed=1) as loader:
        uses = joined([loader.batch(step) for step in range(2)])  # 50 positions: 5 epochs.
    pairs = set(zip(uses["draw"].tolist(), uses["index"].tolist(), strict=True))
    assert pairs == {(draw, index) for draw in range(5) for index in range(10)}
    boxes = {tuple(box) for box, index in zip(uses["box"].tolist(), uses["index"], strict=True) if index == 3}
    assert len(boxes) == 5 and 0 < uses["flip"].sum() < 50 and uses["valid"].all()


def test_types_shapes_and_content():
    with Loader(dataset(), RANDOM, batch_size=4, seed=1) as loader:
        batch = loader.batch(7)
    shapes = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert shapes == {
        "image": ("uint8", (4, 6, 6, 3)),
        "index": ("int32", (4,)),
        "draw": ("int32", (4,)),
        "box": ("float32", (4, 4)),
        "flip": ("bool", (4,)),
        "label": ("int32", (4,)),
        "valid": ("bool", (4,)),
    }
    np.testing.assert_array_equal(batch["label"], batch["index"] % 10)
    assert (batch["box"] >= 0).all() and (batch["box"][:, :2] + batch["box"][:, 2:] <= 1 + 1e-6).all()


@pytest.mark.parametrize("first", [0, 3])
def test_iterate_from_any_step_is_batch_by_batch(first):
    with Loader(dataset(), RANDOM, batch_size=6, seed=2, threads=3, prefetch=3) as loader:
        for step, batch in zip(range(first, first + 8), loader.iterate(first), strict=False):
            equal(batch, loader.batch(step))


def test_the_short_cut_for_arrays_changes_nothing():
    digits = open_dataset("digits", "train")

    class Hidden:
        """The same source, not known to be an array."""

        name, num_classes, class_names, fingerprint = "hidden", 10, digits.class_names, digits.fingerprint
        describe = digits.describe

        def __len__(self):
            return len(digits)

        def __getitem__(self, index):
            return digits[index]

    for spec in (WHOLE, InputSpec((8, 8), "centre_square"), InputSpec((8, 8), "squash", flip=True)):
        with (
            Loader(digits, spec, batch_size=50, seed=3) as fast,
            Loader(Hidden(), spec, batch_size=50, seed=3) as slow,
        ):
            assert fast._crew._gather and not slow._crew._gather
            equal(fast.batch(30), slow.batch(30))


def test_seeds_differ():
    with (
        Loader(dataset(), RANDOM, batch_size=10, seed=1) as one,
        Loader(dataset(), RANDOM, batch_size=10, seed=2) as two,
    ):
        assert (one.batch(0)["index"] != two.batch(0)["index"]).any()


def test_placing_on_devices():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    with Loader(dataset(), RANDOM, batch_size=4, seed=0) as loader:
        placed = next(loader.iterate(0, lambda batch: place(batch, sharding)))
        assert all(isinstance(value, jax.Array) and value.sharding == sharding for value in placed.values())
        equal({key: np.asarray(value) for key, value in placed.items()}, loader.batch(0))


def test_extras_are_served_by_index():
    table = np.arange(30, dtype=np.int32).reshape(10, 3)
    spec = InputSpec((8, 8), "none", extras=("tokens",))
    with Loader(
        dataset(), spec, batch_size=5, seed=0, extras={"tokens": lambda index: table[index]}
    ) as loader:
        batch = loader.batch(3)
    np.testing.assert_array_equal(batch["tokens"], table[batch["index"]])
    with pytest.raises(DataError, match="'tokens'"):
        Loader(dataset(), spec, batch_size=5, seed=0)


def test_what_extras_hold_is_not_read():
    """Without pixels, and with the labels in a table, the source is left alone; without the table it is not."""

    class Unreadable:
        name, num_classes, class_names, multi_label, fingerprint = (
            "unreadable",
            3,
            ("a", "b", "c"),
            False,
            "0",
        )

        def __len__(self):
            return 10

        def __getitem__(self, index):
            raise DataError("read")

    table = np.arange(10, dtype=np.int32) % 3
    spec = InputSpec((8, 8), "none", extras=("label",), pixels=False)
    with Loader(
        Unreadable(), spec, batch_size=5, seed=0, extras={"label": lambda index: table[index]}
    ) as loader:
        batch = loader.batch(3)
    np.testing.assert_array_equal(batch["label"], table[batch["index"]])
    assert batch["image"].shape == (5, 0, 0, 3) and (batch["box"] == (0, 0, 1, 1)).all()
    with Loader(Unreadable(), spec, batch_size=5, seed=0) as loader, pytest.raises(DataError, match="read"):
        loader.batch(3)


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("limit", [None, 5, 100])
def test_evaluation_sees_each_example_once_in_order(hosts, limit):
    spec = InputSpec((8, 8), "none")
    parts = [
        list(
            evaluation_batches(
                dataset(), spec, batch_size=4, process_index=i, process_count=hosts, limit=limit
            )
        )
        for i in range(hosts)
    ]
    assert len({len(part) for part in parts}) == 1
    count = min(10, limit or 10)
    batches = [joined(list(step)) for step in zip(*parts, strict=True)]
    assert len(batches) == -(-count // 4)
    whole = joined(batches)
    np.testing.assert_array_equal(whole["index"][whole["valid"]], np.arange(count))
    padding = ~whole["valid"]
    assert padding.sum() == -count % 4 and (whole["index"][padding] == 0).all()
    np.testing.assert_array_equal(whole["image"][padding], np.repeat(whole["image"][:1], padding.sum(), 0))
    assert not whole["flip"].any() and not whole["draw"].any()


def test_evaluation_with_random_crops_is_a_function_of_the_index():
    spec = InputSpec((6, 6), "random_resized")
    one, two = (joined(list(evaluation_batches(dataset(), spec, batch_size=size))) for size in (5, 2))
    equal(one, two)
    assert len({tuple(box) for box in one["box"].tolist()}) > 5
    with pytest.raises(DataError, match="flip=True"):
        evaluation_batches(dataset(), RANDOM, batch_size=5)


@pytest.mark.parametrize(
    "size, index, count, says",
    [(5, 0, 2, "divided among 2 hosts"), (0, 0, 1, "batch size 0"), (4, 2, 2, "number hosts from 0")],
)
def test_impossible_batches(size, index, count, says):
    with pytest.raises(DataError, match=says):
        Loader(dataset(), RANDOM, batch_size=size, seed=0, process_index=index, process_count=count)


def test_one_example_and_no_example():
    with Loader(dataset(1), RANDOM, batch_size=3, seed=0) as loader:
        batch = loader.batch(2)
    assert batch["draw"].tolist() == [6, 7, 8] and batch["index"].tolist() == [0, 0, 0]

    class Empty:
        name = "empty"

        def __len__(self):
            return 0

    with pytest.raises(DataError, match="holds no images"):
        Loader(Empty(), RANDOM, batch_size=3, seed=0)


def test_memory_budget_counts_what_is_held():
    spec = InputSpec((224, 224), "random_resized")
    with Loader(dataset(10, 300), spec, batch_size=64, seed=0, prefetch=2, threads=2) as loader:
        images = 224 * 224 * 3 * 64
        assert 5 * images < loader.memory_budget_bytes() < 8 * images
        assert "MiB" in loader.describe_memory() and "\n" not in loader.describe_memory()
    with Loader(dataset(10, 300), spec, batch_size=64, seed=0, prefetch=6, threads=2) as more:
        assert more.memory_budget_bytes() - loader.memory_budget_bytes() == 4 * (images + 64 * 64)
