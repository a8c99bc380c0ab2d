"""The same batches for any number of hosts, from any step; evaluation; memory;
placement."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mim_jax.data import (
    ClassLabel,
    ClassLabelsView,
    ClassLabelView,
    ColumnView,
    DataError,
    ImageView,
    Loader,
    SecondSizeView,
    evaluation_batches,
    evenly_spaced,
    open_dataset,
    place,
)
from mim_jax.data.crop import CentreSquare, NoCrop, RandomResizedCrop, Squash
from mim_jax.data.views import ArraySpec, ExampleNumbers, SubsetColumn

RANDOM = ClassLabelView(ImageView((6, 6), RandomResizedCrop(), flip=True))
WHOLE = ClassLabelView(ImageView((8, 8), NoCrop(), flip=True))


class Table:
    """A column in memory."""

    def __init__(self, values):
        self.values, self.spec = values, ArraySpec(values.shape[1:], values.dtype.name)

    def __getitem__(self, index):
        return self.values[index]


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
    pairs = set(zip(uses["epoch"].tolist(), uses["index"].tolist(), strict=True))
    assert pairs == {(epoch, index) for epoch in range(5) for index in range(10)}
    boxes = {tuple(box) for box, index in zip(uses["box"].tolist(), uses["index"], strict=True) if index == 3}
    assert len(boxes) == 5 and 0 < uses["flip"].sum() < 50 and uses["valid"].all()


def test_types_shapes_and_content():
    with Loader(dataset(), RANDOM, batch_size=4, seed=1) as loader:
        batch = loader.batch(7)
    shapes = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert shapes == {
        "image": ("uint8", (4, 6, 6, 3)),
        "index": ("int32", (4,)),
        "epoch": ("int32", (4,)),
        "box": ("float32", (4, 4)),
        "flip": ("bool", (4,)),
        "label": ("int32", (4,)),
        "valid": ("bool", (4,)),
    }
    for key, spec in RANDOM.keys.items():
        assert shapes[key] == (spec.dtype, (4, *spec.shape))
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
        """The same dataset, not known to be an array."""

        name, num_classes, class_names, fingerprint = "hidden", 10, digits.class_names, digits.fingerprint
        annotation, describe = digits.annotation, digits.describe

        def __len__(self):
            return len(digits)

        def __getitem__(self, index):
            return digits[index]

    index, epoch = np.arange(5), np.zeros(5, np.int64)
    table = Table(np.arange(1437, dtype=np.int32))
    for view in (
        WHOLE,
        ImageView((8, 8), CentreSquare()),
        ClassLabelView(ImageView((8, 8), Squash(), flip=True)),
        ColumnView(WHOLE, {"number": table}),
        ClassLabelView(None),
    ):
        assert view.render_batch(digits, index, epoch, 3) is not None
        assert view.render_batch(Hidden(), index, epoch, 3) is None
        with (
            Loader(digits, view, batch_size=50, seed=3) as fast,
            Loader(Hidden(), view, batch_size=50, seed=3) as slow,
        ):
            batch = fast.batch(30)
            equal(batch, slow.batch(30))
            for key, spec in view.keys.items():
                assert (batch[key].shape, batch[key].dtype.name) == ((50, *spec.shape), spec.dtype), key


def test_the_short_cut_is_for_images_of_the_views_size_alone():
    digits = open_dataset("digits", "train")
    index, epoch = np.arange(5), np.zeros(5, np.int64)
    second = SecondSizeView(ImageView((8, 8), Squash()), "teacher", (4, 4))
    views = (RANDOM, ImageView((4, 4), Squash()), ImageView((4, 4), NoCrop()), second)
    assert [view.render_batch(digits, index, epoch, 3) for view in views] == [None] * 4


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


def test_columns_are_joined_by_index():
    table = np.arange(30, dtype=np.int32).reshape(10, 3)
    view = ColumnView(WHOLE, {"tokens": Table(table)})
    assert view.keys == {**WHOLE.keys, "tokens": ((3,), "int32", None)} and view.random
    with Loader(dataset(), view, batch_size=5, seed=0) as loader:
        batch = loader.batch(3)
    np.testing.assert_array_equal(batch["tokens"], table[batch["index"]])


def test_columns_of_a_subset_are_those_of_its_examples():
    table = Table(np.arange(10, dtype=np.int32) ** 2)
    few = evenly_spaced(dataset(), 4)
    view = ColumnView(ExampleNumbers(), {"square": SubsetColumn(table, few)})
    (batch,) = evaluation_batches(few, view, batch_size=4)
    assert batch["index"].tolist() == [0, 1, 2, 3] and batch["square"].tolist() == [0, 4, 25, 49]


def test_what_columns_hold_is_not_read():
    """Without pixels, and with the labels in a table, the dataset is left alone; without the table it is not."""

    class Unreadable:
        name, num_classes, class_names, annotation, fingerprint = (
            "unreadable",
            3,
            ("a", "b", "c"),
            ClassLabel,
            "0",
        )

        def __len__(self):
            return 10

        def __getitem__(self, index):
            raise DataError("read")

    table = np.arange(10, dtype=np.int32) % 3
    view = ColumnView(ExampleNumbers(), {"label": Table(table)})
    with Loader(Unreadable(), view, batch_size=5, seed=0) as loader:
        batch = loader.batch(3)
    np.testing.assert_array_equal(batch["label"], table[batch["index"]])
    assert batch.keys() == {"index", "epoch", "valid", "label"}
    unaided = ClassLabelView(None)
    with (
        Loader(Unreadable(), unaided, batch_size=5, seed=0) as loader,
        pytest.raises(DataError, match="read"),
    ):
        loader.batch(3)


def test_one_label_an_image_is_not_several():
    with pytest.raises(DataError, match="one label an image"):
        Loader(dataset(), ClassLabelsView(WHOLE, 10), batch_size=5, seed=0)
    with pytest.raises(DataError, match="one label an image"):
        evaluation_batches(dataset(), ColumnView(ClassLabelsView(None, 10), {}), batch_size=5)


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("limit", [None, 5, 100])
def test_evaluation_sees_each_example_once_in_order(hosts, limit):
    view = ImageView((8, 8), NoCrop())
    parts = [
        list(
            evaluation_batches(
                dataset(), view, batch_size=4, process_index=i, process_count=hosts, limit=limit
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
    assert not whole["flip"].any() and not whole["epoch"].any()


def test_evaluation_with_random_crops_is_a_function_of_the_index():
    view = ImageView((6, 6), RandomResizedCrop())
    one, two = (joined(list(evaluation_batches(dataset(), view, batch_size=size))) for size in (5, 2))
    equal(one, two)
    assert len({tuple(box) for box in one["box"].tolist()}) > 5


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
    assert batch["epoch"].tolist() == [6, 7, 8] and batch["index"].tolist() == [0, 0, 0]

    class Empty:
        name, annotation = "empty", None

        def __len__(self):
            return 0

    with pytest.raises(DataError, match="holds no images"):
        Loader(Empty(), RANDOM, batch_size=3, seed=0)


def test_memory_budget_counts_what_is_held():
    view = ImageView((224, 224), RandomResizedCrop())
    with Loader(dataset(10, 300), view, batch_size=64, seed=0, prefetch=2, threads=2) as loader:
        images = 224 * 224 * 3 * 64
        assert 5 * images < loader.memory_budget_bytes() < 8 * images
        assert "MiB" in loader.describe_memory() and "\n" not in loader.describe_memory()
    with Loader(dataset(10, 300), view, batch_size=64, seed=0, prefetch=6, threads=2) as more:
        assert more.memory_budget_bytes() - loader.memory_budget_bytes() == 4 * (
            images + 64 * (4 * 4 + 1 + 4 + 4 + 1)
        )
