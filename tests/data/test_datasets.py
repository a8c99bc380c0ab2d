"""The datasets that need no files of the user's: digits, photos, arrays, synthetic, concat."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mim_jax.data import ClassLabel, ClassLabels, DataError, Example, Subset, evenly_spaced, open_dataset
from mim_jax.data.datasets.concat import ConcatDataset
from mim_jax.data.datasets.photos import photograph_paths
from mim_jax.data.examples import ArrayImage, class_index

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


def label(dataset, index):
    """The class of one example."""
    return dataset[index].annotation.index


def pixels(dataset, index):
    return dataset[index].image.pixels()


def test_digits_are_scikit_learns_split_for_good():
    train, test = open_dataset("digits", "train"), open_dataset("digits", "test", seed=9)
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    bunch = load_digits()
    whole = {image.tobytes() for image in np.round(bunch.images * 255 / 16).astype(np.uint8)}
    parts = [np.ascontiguousarray(image[..., 0]).tobytes() for image in (*train.images, *test.images)]
    assert set(parts) == whole and len(parts) == len(bunch.images)
    share = np.bincount(test.labels) / np.bincount(bunch.target)
    assert abs(share - 0.2).max() < 0.006
    assert train.images.max() == 255 and (train.images[..., 0] == train.images[..., 2]).all()
    np.testing.assert_array_equal(pixels(train, 5), train.images[5])
    assert train.annotation is ClassLabel and train[5].annotation == ClassLabel(train.labels[5])
    assert train.fingerprint != test.fingerprint == open_dataset("digits", "test").fingerprint


def test_photos_hold_out_a_region_of_each_photograph():
    train, test = open_dataset("photos", "train", crops_per_picture=3), open_dataset("photos", "test")
    assert len(train) == 3 * len(photograph_paths()) and train.num_classes == len(photograph_paths()) == 10
    for number, path in enumerate(photograph_paths()):
        whole = np.asarray(Image.open(path).convert("RGB"))
        left, right = train[3 * number], test[64 * number]
        assert left.annotation == right.annotation == ClassLabel(number)
        left, right = left.image, right.image
        assert (left.height, left.width) == left.pixels().shape[:2]
        np.testing.assert_array_equal(np.concatenate([left.pixels(), right.pixels()], axis=1), whole)
        assert right.width > 64
    assert pixels(train, 0) is pixels(train, 2)
    with pytest.raises(DataError, match="crops_per_picture"):
        open_dataset("photos", "train", crops_per_picture=0)


@pytest.mark.slow
def test_embedded_datasets_fetch_nothing(tmp_path):
    """A fresh HOME, and a network that fails when touched."""
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from mim_jax.data import open_dataset\n"
        "print(len(open_dataset('photos', 'train')), len(open_dataset('digits', 'test')))"
    )
    root = Path(__file__).parents[2]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["640", "360"]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".png", ".jpg", ".npz")]


@pytest.mark.parametrize("x, y", [("x", "y"), ("image", "label"), ("images", "labels")])
def test_arrays_with_splits(tmp_path, x, y):
    path = tmp_path / "a.npz"
    np.savez(
        path,
        **{
            f"{x}_train": IMAGES[:15],
            f"{y}_train": LABELS[:15],
            f"{x}_test": IMAGES[15:],
            f"{y}_test": LABELS[15:],
        },
    )
    train, test = (open_dataset(f"arrays:{path}", split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, IMAGES[:15])
    np.testing.assert_array_equal(test.labels, LABELS[15:])
    assert train.class_names == test.class_names == ("0", "1", "2", "3")


def test_arrays_without_splits_labels_or_colour(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=IMAGES[..., 0])
    train, test = (open_dataset(f"arrays:{path}", split) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes) == (18, 2, 0)
    assert train.annotation is train[0].annotation is None and class_index(train[0].annotation) == -1
    seen = {image.tobytes() for image in np.concatenate([train.images, test.images])}
    assert seen == {np.repeat(image[..., :1], 3, axis=2).tobytes() for image in IMAGES}


def test_arrays_names_and_fingerprint(tmp_path):
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(first, images=IMAGES, labels=LABELS[:, None], class_names=["a", "b", "c", "d", "e"])
    np.savez(second, images=255 - IMAGES, labels=LABELS, class_names=["a", "b", "c", "d", "e"])
    one, two = (open_dataset(f"arrays:{path}", "train") for path in (first, second))
    assert one.class_names == ("a", "b", "c", "d", "e") and one.fingerprint != two.fingerprint
    first.rename(tmp_path / "elsewhere.npz")
    assert open_dataset(f"arrays:{tmp_path}/elsewhere.npz", "train").fingerprint == one.fingerprint


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({"pictures": IMAGES}, "holds pictures, but no images"),
        ({"images": IMAGES.astype(np.float32)}, "save them as uint8"),
        ({"images": IMAGES[..., :2]}, "save them as uint8"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "save 20 integers"),
        ({"images": IMAGES, "labels": LABELS - 5}, "0 and up"),
        ({"images": IMAGES, "labels": LABELS, "class_names": ["a"]}, "give every class a name"),
        ({"images": IMAGES[:1]}, "holds one image"),
        ({"images": np.array([{}, {}], object)}, "plain numbers"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, says):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=says):
        open_dataset(f"arrays:{path}", "train")


def test_arrays_that_are_no_archive(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match="There is no file"):
        open_dataset(f"arrays:{path}", "train")
    for content in (b"", b"text", b"PK\x03\x04 cut short"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a readable"):
            open_dataset(f"arrays:{path}", "train")
    with path.open("wb") as stream:
        np.save(stream, IMAGES)
    with pytest.raises(DataError, match="holds one array"):
        open_dataset(f"arrays:{path}", "train")


def test_synthetic_is_deterministic_and_its_classes_differ():
    dataset, again = open_dataset("synthetic:30:24", "train"), open_dataset("synthetic:30:24", "train")
    other, test = open_dataset("synthetic:30:24", "train", seed=1), open_dataset("synthetic:30:24", "test")
    assert (
        len(dataset) == 30
        and len(test) == 6
        and pixels(dataset, 3).shape == (24, 24, 3)
        and label(dataset, 13) == 3
    )
    np.testing.assert_array_equal(pixels(dataset, 7), pixels(again, 7))
    for different in (other[5], test[5], dataset[15]):
        assert (pixels(dataset, 5) != different.image.pixels()).any()
    assert dataset.fingerprint == again.fingerprint != other.fingerprint
    assert len(open_dataset("synthetic", "train")) == 1024
    for wrong in ("synthetic:0", "synthetic:x", "synthetic:1:2:3"):
        with pytest.raises(DataError, match="is not understood"):
            open_dataset(wrong, "train")


def test_concat_keeps_annotations_only_where_classes_agree():
    same = open_dataset("concat:synthetic:10:8+synthetic:5:16", "train")
    assert len(same) == 15 and same.num_classes == 10 and same.annotation is ClassLabel
    assert label(same, 12) == 2 and same[12].image.width == 16
    mixed = open_dataset("concat:digits+synthetic:5:16", "test")
    assert mixed.num_classes == 0 and "classes differ" in mixed.describe()
    assert mixed.annotation is mixed[0].annotation is mixed[360].annotation is None
    np.testing.assert_array_equal(pixels(mixed, 359), pixels(open_dataset("digits", "test"), 359))
    with pytest.raises(IndexError):
        same[15]


@pytest.mark.parametrize("name", ["cifar", "concat:", "concat:digits+nothing", "digits:8"])
def test_unknown_datasets_name_the_known(name):
    with pytest.raises(DataError, match=r"digits, photos|joins nothing"):
        open_dataset(name, "train")


def test_unknown_split_and_policy():
    with pytest.raises(DataError, match="use train or test"):
        open_dataset("digits", "val")
    with pytest.raises(DataError, match="use error or skip"):
        open_dataset("digits", "train", on_bad_image="ignore")


def test_every_dataset_describes_itself_in_one_line():
    for name in ("digits", "photos", "synthetic", "concat:digits+photos"):
        text = open_dataset(name, "train").describe()
        assert "\n" not in text and text.startswith(name.split(":")[0])


def test_concat_lists_the_bad_images_of_its_parts(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "good.png")
    (tmp_path / "train" / "bad.png").write_bytes(b"no image")
    name = f"concat:folder:{tmp_path}+synthetic:5:8"
    dataset = open_dataset(name, "train", on_bad_image="skip", cache_dir=str(tmp_path / "cache"))
    shapes = [pixels(dataset, index).shape for index in range(len(dataset))]
    assert shapes == [(8, 8, 3)] * 7 and [path.rsplit("/", 1)[1] for path in dataset.bad] == ["bad.png"]
    assert "bad images replaced" in dataset.describe()


def test_evenly_spaced_examples_are_spread_over_the_dataset():
    """The first images of a folder are of its first classes."""
    dataset = open_dataset("photos", "test", crops_per_picture=64)
    sample = evenly_spaced(dataset, 20)
    assert len(sample) == 20 and sample.annotation is ClassLabel
    assert [label(sample, i) for i in range(20)] == [n for n in range(10) for _ in range(2)]
    for count in (10**6, len(dataset), None):
        assert evenly_spaced(dataset, count) is dataset
    assert sample.describe().startswith("20 of photos") and sample.fingerprint != dataset.fingerprint


def test_a_subset_of_a_subset_is_one_of_the_whole():
    """So that what is known of every example of the whole (a token cache) is found by its numbers."""
    dataset = open_dataset("synthetic:100:8", "train")
    inner = Subset(evenly_spaced(dataset, 50), [3, 0, 49])
    assert inner.dataset is dataset and inner.describe().startswith("3 of synthetic")
    np.testing.assert_array_equal(inner.numbers([0, 1, 2]), [6, 0, 98])
    np.testing.assert_array_equal(pixels(inner, 2), pixels(dataset, 98))


class Own:
    """Two images with an annotation of any kind."""

    name, num_classes, class_names, fingerprint = "own", 0, (), "0"

    def __init__(self, *annotations):
        self._annotations, self.annotation = annotations, type(annotations[0])

    def __len__(self):
        return len(self._annotations)

    def __getitem__(self, index):
        return Example(ArrayImage(IMAGES[index]), self._annotations[index])

    def describe(self):
        return "own"


def test_a_class_index_is_that_of_one_class_alone():
    for annotation in (None, ClassLabels(np.ones(3, np.int8)), {"caption": "two cats"}):
        assert class_index(annotation) == -1
    assert class_index(ClassLabel(4)) == 4


def test_annotations_of_any_kind_pass_through_subsets_and_joined_datasets():
    dataset = Own({"caption": "one"}, {"caption": "two"})
    joined = ConcatDataset([Subset(dataset, [1]), dataset])
    assert [joined[n].annotation["caption"] for n in range(3)] == ["two", "one", "two"]
    assert joined.annotation is dict
    mixed = ConcatDataset([dataset, Own(ClassLabel(0))])
    assert mixed.annotation is mixed[0].annotation is mixed[2].annotation is None
