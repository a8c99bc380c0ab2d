"""Token caches: what is written is read, and everything else is refused in one sentence."""

import hashlib
import json

import numpy as np
import pytest

from mim_jax.data import DataError, TokenCache, TokenWriter, write_token_cache

HEADER = {
    "tokenizer": "kmeans",
    "tokenizer_fingerprint": "abc",
    "vocabulary": 64,
    "grid": (2, 3),
    "view": "squash",
    "size": (8, 12),
    "source": "digits",
    "length": 10,
    "source_fingerprint": "def",
}
TOKENS = np.random.default_rng(0).integers(0, 64, (10, 6))


@pytest.fixture
def cache(tmp_path):
    return written(tmp_path / "cache")


def written(path, order=(0, 1, 2), stop_after=None):
    """A cache of three shards, each written by a writer of its own; `stop_after` shards it is left as it is."""
    for shard in order[:stop_after]:
        writer = TokenWriter(path, HEADER, rows_per_shard=4)
        writer.write(shard, TOKENS[writer.rows(shard).start : writer.rows(shard).stop])
    if stop_after is None:
        writer.finish()
    return path


def test_round_trip_over_shards(cache):
    opened = TokenCache.open(cache, expect=HEADER)
    wanted = np.array([9, 0, 3, 4, 6, 7, 9])
    assert len(opened) == 10 and opened[wanted].dtype == np.int32 and opened.header["dtype"] == "int16"
    np.testing.assert_array_equal(opened[wanted], TOKENS[wanted])
    assert opened[np.array([], np.int64)].shape == (0, 6)


def test_large_vocabulary_takes_int32(tmp_path):
    tokens = np.array([[40_000, 1]])
    write_token_cache(tmp_path / "c", tokens, HEADER | {"vocabulary": 50_000, "length": 1, "grid": (1, 2)})
    opened = TokenCache.open(tmp_path / "c", expect={})
    assert opened.header["dtype"] == "int32"
    np.testing.assert_array_equal(opened[np.array([0])], tokens)


@pytest.mark.parametrize(
    "field, value", [("grid", (3, 2)), ("source_fingerprint", "xyz"), ("length", 11), ("view", "none")]
)
def test_the_field_that_differs_is_named(cache, field, value):
    with pytest.raises(DataError, match=f"made for {field} = "):
        TokenCache.open(cache, expect=HEADER | {field: value})


def test_a_field_the_header_lacks_is_named(cache):
    with pytest.raises(DataError, match="does not say its colour"):
        TokenCache.open(cache, expect={"colour": "grey"})


def test_missing_and_damaged_caches(cache, tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        TokenCache.open(tmp_path / "nowhere", expect={})
    with pytest.raises(DataError, match=r"has no header\.json"):
        TokenCache.open(tmp_path, expect={})
    shard = cache / "tokens-00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"tokens-00001\.npy is not what was written"):
        TokenCache.open(cache, expect={})
    TokenCache.open(cache, expect={}, verify=False)
    shard.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"tokens-00001\.npy cannot be read"):
        TokenCache.open(cache, expect={}, verify=False)
    shard.unlink()
    with pytest.raises(DataError, match=r"tokens-00001\.npy is missing"):
        TokenCache.open(cache, expect={})
    header = json.loads((cache / "header.json").read_text())
    (cache / "header.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        TokenCache.open(cache, expect={})
    (cache / "header.json").write_text(json.dumps({**header, "shards": {}}))
    with pytest.raises(DataError, match="lists no shards"):
        TokenCache.open(cache, expect={})


def test_index_out_of_range(cache):
    opened = TokenCache.open(cache, expect={})
    for wrong in ([10], [-1, 2]):
        with pytest.raises(DataError, match="holds examples 0 to 9"):
            opened[np.array(wrong)]


@pytest.mark.parametrize(
    "tokens, change, says",
    [
        (TOKENS, {"vocabulary": 60}, "outside the vocabulary of 60"),
        (TOKENS - 1, {}, "outside the vocabulary"),
        (TOKENS[:9], {}, "got 9 rows for a source of length 10"),
        (TOKENS.astype(float), {}, "give integers"),
        (TOKENS[0], {}, "got 6 rows"),
    ],
)
def test_a_refused_write_leaves_nothing(tmp_path, tokens, change, says):
    with pytest.raises(DataError, match=says):
        write_token_cache(tmp_path / "c", tokens, HEADER | change)
    assert list(tmp_path.iterdir()) == []


def test_writing_needs_a_whole_header_and_a_free_path(cache):
    with pytest.raises(DataError, match="exists already"):
        write_token_cache(cache, TOKENS, HEADER)
    with pytest.raises(DataError, match="lacks vocabulary"):
        write_token_cache(
            cache.with_name("other"), TOKENS, {k: v for k, v in HEADER.items() if k != "vocabulary"}
        )


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interrupted_writer_goes_on_to_the_same_bytes(tmp_path, cache, stop_after):
    other = tmp_path / "other" / "cache"
    written(other, (2, 0, 1), stop_after)
    assert not other.exists()
    (other.with_name(".cache.partial") / ".tokens-00000.npy.partial-0a1b2c3d").write_bytes(
        b"half"
    )  # a writer killed in the middle
    writer = TokenWriter(other, HEADER, rows_per_shard=4)
    assert writer.missing() == sorted((2, 0, 1)[stop_after:])
    for shard in writer.missing():
        writer.write(shard, TOKENS[writer.rows(shard).start : writer.rows(shard).stop])
    writer.finish()
    files = {file.name: file.read_bytes() for file in cache.iterdir()}
    assert {file.name: file.read_bytes() for file in other.iterdir()} == files


def test_an_unfinished_cache_for_something_else_is_refused(tmp_path):
    written(tmp_path / "c", stop_after=1)
    with pytest.raises(
        DataError, match=r"begun for something else .*tokenizer_fingerprint was abc, is other"
    ):
        TokenWriter(tmp_path / "c", HEADER | {"tokenizer_fingerprint": "other"}, rows_per_shard=4)
    with pytest.raises(DataError, match="still lacks 2 of 3 shards"):
        TokenWriter(tmp_path / "c", HEADER, rows_per_shard=4).finish()
    writer = TokenWriter(tmp_path / "c", HEADER, rows_per_shard=4)
    with pytest.raises(DataError, match=r"give integers \[4, L\]"):
        writer.write(1, TOKENS[:3])
    writer.write(1, TOKENS[4:8, :5])
    writer.write(2, TOKENS[8:])
    with pytest.raises(DataError, match=r"rows of \[5, 6\] ids"):
        writer.finish()


@pytest.mark.parametrize("wrong", [-1, 64, 2**14])
def test_an_id_outside_the_vocabulary_is_named(cache, wrong):
    """Its checksum fits: it was written by somebody else's tokenizer."""
    shard = cache / "tokens-00001.npy"
    ids = np.array(np.load(shard))
    ids[2, 3] = wrong
    np.save(shard, ids)
    header = json.loads((cache / "header.json").read_text())
    header["shards"][shard.name]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    (cache / "header.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match=rf"00001\.npy holds the id {wrong} in row 2 \(example 6, token 3\)"):
        TokenCache.open(cache, expect={})
