"""Every kind of odd and broken file, one by one; then all at once, under both policies, on several hosts."""

import os
import threading

import numpy as np
import pytest
from odd_files import IGNORED, LINKS, SIZE, bad_files, good_files, write_folder

from mim_jax.data import BadImageError, DataError, ImageView, Loader, evaluation_batches, open_dataset
from mim_jax.data.crop import RandomResizedCrop, Squash
from mim_jax.data.datasets.folder import open_folder, read_bytes

VIEW = ImageView((16, 16), RandomResizedCrop(), flip=True)
BAD = len(bad_files()) + len(LINKS)
GOOD = len(good_files()) + 2  # directory.jpg/inside.jpg, link_to_plain.jpg


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd") / "pictures"
    write_folder(root / "train")
    write_folder(root / "test", bad=False)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def names(dataset):
    return [dataset._files[int(i)] for i in dataset._chosen]


def test_there_are_thirty_kinds_and_more():
    assert GOOD + BAD + len(IGNORED) >= 40


def test_what_is_listed(folder):
    listed = names(open_folder(str(folder), "train"))
    expected = {
        *good_files(),
        *bad_files(),
        *LINKS,
        "link_to_plain.jpg",
        os.path.join("directory.jpg", "inside.jpg"),
    }
    assert set(listed) == expected and len(listed) == len(expected) == GOOD + BAD
    assert listed == sorted(listed, key=os.fsencode)


@pytest.mark.parametrize("name", good_files())
def test_odd_but_good(folder, name):
    dataset = open_folder(str(folder), "test")
    image = dataset[names(dataset).index(name)].image
    pixels = image.pixels()
    assert (image.height, image.width) == pixels.shape[:2] == good_files()[name][1]
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    assert pixels.size == 3 or pixels.std() > 10  # Not blank, not clipped to one value.


@pytest.mark.parametrize("name", [*bad_files(), *LINKS])
def test_bad_ones_are_named_with_the_reason(folder, name):
    dataset = open_folder(str(folder), "train")
    reason = bad_files()[name][1] if name in bad_files() else LINKS[name]
    with pytest.raises(BadImageError, match=f"(?s){name}.*({reason}).*on_bad_image=skip") as caught:
        dataset[names(dataset).index(name)].image.pixels()
    assert str(caught.value).count("\n") == 0


def test_error_policy_raises_in_the_consumer(folder):
    with Loader(open_dataset(f"folder:{folder}", "train"), VIEW, batch_size=2 * GOOD + BAD, seed=0) as loader:
        with pytest.raises(DataError, match="cannot be used"):
            loader.batch(0)
        with pytest.raises(DataError, match="cannot be used"):
            next(loader.iterate(0))


def test_skip_replaces_counts_and_lists(folder):
    dataset = open_dataset(f"folder:{folder}", "train", on_bad_image="skip")
    good = {open_folder(str(folder), "test")[i].image.pixels().tobytes() for i in range(GOOD)}
    for index in range(len(dataset)):
        assert dataset[index].image.pixels().tobytes() in good
    assert len(dataset.bad) == BAD and all(str(folder) in path for path in dataset.bad)
    reasons = {os.path.basename(path): reason for path, reason in dataset.bad.items()}
    assert "empty" in reasons["empty.jpg"] and "broken link" in reasons["broken_link.jpg"]


def test_skip_gives_the_same_batches_after_resume_and_for_any_hosts(folder):
    def open_fresh():
        return open_dataset(f"folder:{folder}", "train", on_bad_image="skip")

    with Loader(open_fresh(), VIEW, batch_size=16, seed=3, threads=2) as whole:
        expected = [whole.batch(step) for step in range(5)]
    for hosts in (2, 4):
        for host in range(hosts):
            # A fresh dataset has met no bad file, and starts in the middle.
            with Loader(
                open_fresh(), VIEW, batch_size=16, seed=3, process_index=host, process_count=hosts
            ) as loader:
                for step in (3, 4):
                    part = loader.batch(step)
                    rows = slice(host * 16 // hosts, (host + 1) * 16 // hosts)
                    for key, value in part.items():
                        np.testing.assert_array_equal(value, expected[step][key][rows], err_msg=key)


def test_skip_from_many_threads_counts_each_once(folder):
    dataset = open_dataset(f"folder:{folder}", "train", on_bad_image="skip")
    threads = [threading.Thread(target=lambda: [dataset[i] for i in range(len(dataset))]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(dataset.bad) == BAD


def test_a_folder_of_nothing_but_bad_files(tmp_path):
    write_folder(tmp_path / "train", good=False)
    write_folder(tmp_path / "test", bad=False)
    dataset = open_dataset(f"folder:{tmp_path}", "train", on_bad_image="skip")
    with pytest.raises(DataError, match=f"None of the {BAD} images"):
        dataset[0]


def test_evaluation_skips_too_and_keeps_its_order(folder):
    dataset = open_dataset(f"folder:{folder}", "train", on_bad_image="skip")
    batches = list(evaluation_batches(dataset, ImageView(SIZE, Squash()), batch_size=8))
    index = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(len(dataset)))


def test_unreadable_file(tmp_path):
    path = tmp_path / "locked.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(BadImageError, match="Permission denied"):
        read_bytes(str(path))


def test_a_failing_machine_is_no_bad_image(tmp_path, monkeypatch):
    import errno

    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")

    def fail(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(DataError, match="could not be read") as caught:
        read_bytes(str(path))
    assert not isinstance(caught.value, BadImageError)
