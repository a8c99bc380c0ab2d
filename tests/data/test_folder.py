"""Folders: splits, labels, the listing and its cache."""

import os
import time

import numpy as np
import pytest
from odd_files import base, encode

from mim_jax.data import ClassLabel, DataError, open_dataset
from mim_jax.data.datasets import folder
from mim_jax.data.datasets import listing as module
from mim_jax.data.datasets.folder import open_folder
from mim_jax.data.datasets.listing import list_images, walk

PICTURE = encode(base(), "PNG")


def write(root, *paths):
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(PICTURE)
    return root


def opened(root, split):
    return open_folder(str(root), split, cache_dir=str(root.parent / "cache"))


def paths(dataset):
    return [dataset._files[int(i)] for i in dataset._chosen]


def labels(dataset):
    return dict(zip(paths(dataset), dataset._labels.tolist(), strict=True))


def test_class_folders_with_splits(tmp_path):
    root = write(
        tmp_path / "d",
        "train/b/1.png",
        "train/a/deep/er/2.png",
        "train/c/3.png",
        "val/c/4.png",
        "val/a/5.png",
    )
    train, test = opened(root, "train"), opened(root, "test")
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert labels(train) == {"a/deep/er/2.png": 0, "b/1.png": 1, "c/3.png": 2}
    assert labels(test) == {"a/5.png": 0, "c/4.png": 2}
    assert test.annotation is ClassLabel and test[1].annotation == ClassLabel(2)
    assert "3 classes" in train.describe() and "split folder val" in test.describe()


def test_the_test_folder_with_the_classes_is_preferred(tmp_path):
    root = write(
        tmp_path / "d",
        "train/a/1.png",
        "train/b/2.png",
        "val/a/3.png",
        "val/b/4.png",
        "test/5.png",
        "test/6.png",
    )
    assert set(paths(opened(root, "test"))) == {"a/3.png", "b/4.png"}


def test_a_heap_for_a_test_split_has_no_labels(tmp_path):
    root = write(tmp_path / "d", "train/a/1.png", "train/b/2.png", "test/5.png", "test/6.png")
    test = opened(root, "test")
    assert set(labels(test).values()) == {-1} and test.num_classes == 0
    assert test.annotation is test[0].annotation is None


def test_an_unknown_class_in_test_is_named(tmp_path):
    root = write(tmp_path / "d", "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/zebra/4.png")
    with pytest.raises(DataError, match="zebra is not one of the 2 classes"):
        opened(root, "test")


@pytest.mark.parametrize(
    "files, classes",
    [
        (["x/1.png", "y/2.png"], ("x", "y")),
        (["x/1.png", "x/2.png"], ()),
        (["x/1.png", "y/2.png", "top.png"], ()),
        (["1.png", "2.png"], ()),
        (["x/1.png", "y/2.png", "empty/readme.txt"], ("x", "y")),
    ],
)
def test_when_there_are_labels(tmp_path, files, classes):
    assert opened(write(tmp_path / "d", *files), "train").class_names == classes


def test_without_split_folders_a_tenth_is_held_out_for_good(tmp_path):
    root = write(tmp_path / "d", *(f"{c}/{n}.png" for c in "ab" for n in range(300)))
    train, test = set(paths(opened(root, "train"))), set(paths(opened(root, "test")))
    assert not train & test and len(train | test) == 600 and 35 <= len(test) <= 85
    write(root, *(f"c/{n}.png" for n in range(50)))
    assert test == {path for path in paths(opened(root, "test")) if path[0] != "c"}
    assert (
        "10 %" in opened(root, "test").describe() and "without the 10 %" in opened(root, "train").describe()
    )


def test_a_train_folder_alone_is_divided(tmp_path):
    root = write(tmp_path / "d", *(f"train/{n}.png" for n in range(30)), "other/x.png")
    train, test = paths(opened(root, "train")), paths(opened(root, "test"))
    assert (
        len(train) + len(test) == 30
        and test
        and "no test or val beside it" in opened(root, "train").describe()
    )


def test_two_images_are_enough_and_one_is_not(tmp_path):
    root = write(tmp_path / "two", "1.png", "2.png")
    assert len(opened(root, "train")) == len(opened(root, "test")) == 1
    with pytest.raises(DataError, match="holds one image"):
        opened(write(tmp_path / "one", "1.png"), "train")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_neither_part_is_ever_empty(tmp_path, monkeypatch, share):
    monkeypatch.setattr(folder, "HELD_OUT", share)  # As if every hash, or none, fell below the tenth.
    root = write(tmp_path / "d", "1.png", "2.png", "3.png")
    assert {len(opened(root, "train")), len(opened(root, "test"))} == {1, 2}


def test_folders_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "texts", "sub/readme.txt")
    (tmp_path / "file.png").write_bytes(PICTURE)
    for name, says in (
        ("none", "does not exist"),
        ("empty", "is empty"),
        ("texts", "holds no images"),
        ("file.png", "is a file"),
    ):
        with pytest.raises(DataError, match=f"{name} {says}"):
            open_dataset(f"folder:{tmp_path / name}", "train", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="empty path"):
        open_dataset("folder:", "train")


def test_fingerprint_follows_content_and_not_the_place(tmp_path):
    first = opened(write(tmp_path / "a", "x/1.png", "y/2.png", "y/3.png"), "train").fingerprint
    os.rename(tmp_path / "a", tmp_path / "b")
    assert opened(tmp_path / "b", "train").fingerprint == first
    for name in ("x/1.png", "y/2.png", "y/3.png"):
        (tmp_path / "b" / name).write_bytes(PICTURE + b" ")
    (tmp_path / "cache").rename(tmp_path / "old")
    assert opened(tmp_path / "b", "train").fingerprint != first


def test_links_to_folders_are_followed_right_below_the_root_only(tmp_path):
    """A subset of another data set is often a folder of links to its classes."""
    root = write(tmp_path / "d", "a/1.png", "b/2.png")
    outside = write(tmp_path / "outside", "3.png", "deep/4.png")
    (root / "c").symlink_to(outside)
    (root / "a" / "out").symlink_to(outside)
    (outside / "back").symlink_to(root / "a")
    listing = walk(str(root))
    assert sorted(listing.files) == ["a/1.png", "b/2.png", "c/3.png", "c/deep/4.png"]
    assert listing.skipped == 2
    assert (
        "2 links to folders were not followed"
        in open_folder(str(root), "train", str(tmp_path / "x")).describe()
    )


@pytest.mark.parametrize("target", ["/", "/proc", "..", ".", "a"])
@pytest.mark.parametrize("place", ["link", "a/link"])
def test_a_link_that_leads_up_or_to_a_whole_disk_is_not_walked(tmp_path, place, target):
    root = write(tmp_path / "d", "a/1.png", "b/2.png")
    (root / place).symlink_to(target if target.startswith("/") else (root / target).resolve())
    listing = walk(str(root))
    assert list(listing.files) == ["a/1.png", "b/2.png"] and listing.skipped == 1
    assert len(listing.directories) == 3


def settle(root):
    """As if the folder had last changed an hour ago."""
    then = time.time() - 3600
    for place, _, _ in os.walk(root):
        os.utime(place, (then, then))


def test_the_listing_is_cached_and_a_change_is_seen(tmp_path, monkeypatch):
    root, cache = write(tmp_path / "d", "a/1.png", "b/ü.png"), str(tmp_path / "cache")
    settle(root)
    walked = list_images(str(root), cache)
    again = list_images(str(root), cache)
    assert (
        not walked.cached
        and again.cached
        and list(again.files) == list(walked.files) == ["a/1.png", "b/ü.png"]
    )
    np.testing.assert_array_equal(again.sizes, [len(PICTURE)] * 2)
    write(root, "b/deep/3.png")
    assert list(list_images(str(root), cache).files) == ["a/1.png", "b/deep/3.png", "b/ü.png"]
    settle(root)
    (root / "a" / "1.png").unlink()
    changed = list_images(str(root), cache)
    assert not changed.cached and len(changed.files) == 2


def test_a_folder_that_changed_just_now_is_not_trusted(tmp_path):
    root, cache = write(tmp_path / "d", "a/1.png"), str(tmp_path / "cache")
    assert not list_images(str(root), cache).cached and not list_images(str(root), cache).cached


def test_a_damaged_or_older_cache_is_made_again(tmp_path, monkeypatch):
    root, cache = write(tmp_path / "d", "a/1.png"), tmp_path / "cache"
    settle(root)
    list_images(str(root), str(cache))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], b"text"):
        file.write_bytes(damaged)
        assert not list_images(str(root), str(cache)).cached
    assert list_images(str(root), str(cache)).cached
    monkeypatch.setattr(module, "VERSION", 99)
    assert not list_images(str(root), str(cache)).cached


def test_a_cache_that_cannot_be_kept_is_said(tmp_path):
    root = write(tmp_path / "d", "a/1.png")
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.warns(UserWarning, match="set cache_dir"):
        assert len(list_images(str(root), str(tmp_path / "cache")).files) == 1
