"""The sources that need no files of the user's: digits, photos, arrays, synthetic, concat."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mim_jax.data import DataError, EvenSample, open_dataset
from mim_jax.data.datasets.photos import photograph_paths

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


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
    np.testing.assert_array_equal(train[5].pixels(), train.images[5])
    assert train.fingerprint != test.fingerprint == open_dataset("digits", "test").fingerprint


def test_photos_hold_out_a_region_of_each_photograph():
    train, test = open_dataset("photos", "train", crops_per_picture=3), open_dataset("photos", "test")
    assert len(train) == 3 * len(photograph_paths()) and train.num_classes == len(photograph_paths()) == 10
    for number, path in enumerate(photograph_paths()):
        whole = np.asarray(Image.open(path).convert("RGB"))
        left, right = train[3 * number], test[64 * number]
        assert left.label == right.label == number and (left.height, left.width) == left.pixels().shape[:2]
        np.testing.assert_array_equal(np.concatenate([left.pixels(), right.pixels()], axis=1), whole)
        assert right.width > 64
    assert train[0].pixels() is train[2].pixels()
    with pytest.raises(DataError, match="crops_per_picture"):
        open_dataset("photos", "train", crops_per_picture=0)


@pytest.mark.slow
def test_embedded_sources_fetch_nothing(tmp_path):
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
    assert (len(train), len(test), train.num_classes, train[0].label) == (18, 2, 0, -1)
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
        and dataset[3].pixels().shape == (24, 24, 3)
        and dataset[13].label == 3
    )
    np.testing.assert_array_equal(dataset[7].pixels(), again[7].pixels())
    for different in (other[5], test[5], dataset[15]):
        assert (dataset[5].pixels() != different.pixels()).any()
    assert dataset.fingerprint == again.fingerprint != other.fingerprint
    assert len(open_dataset("synthetic", "train")) == 1024
    for wrong in ("synthetic:0", "synthetic:x", "synthetic:1:2:3"):
        with pytest.raises(DataError, match="is not understood"):
            open_dataset(wrong, "train")


def test_concat_keeps_labels_only_where_classes_agree():
    same = open_dataset("concat:synthetic:10:8+synthetic:5:16", "train")
    assert len(same) == 15 and same.num_classes == 10 and same[12].label == 2 and same[12].width == 16
    mixed = open_dataset("concat:digits+synthetic:5:16", "test")
    assert (
        mixed.num_classes == 0
        and {mixed[0].label, mixed[360].label} == {-1}
        and "classes differ" in mixed.describe()
    )
    np.testing.assert_array_equal(mixed[359].pixels(), open_dataset("digits", "test")[359].pixels())
    with pytest.raises(IndexError):
        same[15]


@pytest.mark.parametrize("name", ["cifar", "concat:", "concat:digits+nothing", "digits:8"])
def test_unknown_sources_name_the_known(name):
    with pytest.raises(DataError, match=r"digits, photos|joins nothing"):
        open_dataset(name, "train")


def test_unknown_split_and_policy():
    with pytest.raises(DataError, match="use train or test"):
        open_dataset("digits", "val")
    with pytest.raises(DataError, match="use error or skip"):
        open_dataset("digits", "train", on_bad_image="ignore")


def test_every_source_describes_itself_in_one_line():
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
    shapes = [dataset[index].pixels().shape for index in range(len(dataset))]
    assert shapes == [(8, 8, 3)] * 7 and [path.rsplit("/", 1)[1] for path in dataset.bad] == ["bad.png"]
    assert "bad images replaced" in dataset.describe()


def test_an_even_sample_is_spread_over_the_source():
    """The first images of a folder are of its first classes."""
    dataset = open_dataset("photos", "test", crops_per_picture=64)
    sample = EvenSample(dataset, 20)
    assert len(sample) == 20 and [sample[i].label for i in range(20)] == [
        n for n in range(10) for _ in range(2)
    ]
    whole = EvenSample(dataset, 10**6)
    assert len(whole) == len(dataset) and whole[77].label == dataset[77].label
    assert sample.describe().startswith("20 of photos") and sample.fingerprint != dataset.fingerprint
