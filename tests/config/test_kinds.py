"""Every key has a kind and a range, and they are checked wherever a configuration comes from."""

import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from mim_jax.analysis.runs import AnalysisOptions
from mim_jax.compare.config import ComparisonConfig
from mim_jax.config.check import ConfigError, build, check, default_config, to_dict
from mim_jax.config.errors import one_line
from mim_jax.config.files import load, override
from mim_jax.config.kinds import MOST, OneOf, Range, Values, conform
from mim_jax.config.schema import Augment, Config, Data, Surgery
from mim_jax.data.crop import CROPS, FILTERS
from mim_jax.data.datasets.opening import ON_BAD_IMAGE
from mim_jax.methods import METHODS
from mim_jax.models.surgery import MODES
from mim_jax.tasks.fit_tokenizer import TokenizerOptions
from mim_jax.tokenizers.teachers import TEACHERS
from mim_jax.training.run_directory import read_config

TREES = {
    "config": Config,
    "compare": ComparisonConfig,
    "job analyze": AnalysisOptions,
    "job tokenizer": TokenizerOptions,
    **{f"method {name}": options for name, (options, _) in METHODS.items()},
}


def keys(tree: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in typing.get_type_hints(tree, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from keys(typing.cast(type, hint), f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", hint


def unbounded(hint: Any) -> list[Any]:
    """The parts of a hint that hold any number or text: those without a range of their own."""
    if typing.get_origin(hint) is Annotated:
        inner, *checks = typing.get_args(hint)
        return [] if inner in (int, float, str) and checks else unbounded(inner)
    if parts := typing.get_args(
        hint
    ):  # unions and tuples; a section with keys of its own holds whatever it is given
        return (
            [] if typing.get_origin(hint) is dict else [wrong for part in parts for wrong in unbounded(part)]
        )
    return [hint] if hint in (int, float, str, tuple, list) else []


EVERY_KEY = [(name, hint) for prefix, tree in TREES.items() for name, hint in keys(tree, prefix)]


def test_every_key_has_a_range() -> None:
    """A new key without one fails here."""
    assert len(EVERY_KEY) > 150
    assert [name for name, hint in EVERY_KEY if unbounded(hint)] == []
    assert unbounded(int | None) and unbounded(tuple[float, float]) and unbounded(str)


def test_defaults_lie_within_their_ranges() -> None:
    for tree in TREES.values():
        built = build(tree, to_dict(tree()))
        assert built == tree()


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 10**400, True, None, "1", (), [1.0], {}, b"1", 1j], ids=repr
)
def test_what_no_number_may_be(value: Any) -> None:
    """Over all keys that hold one number: never a crash, always a sentence that begins with the key."""
    found = 0
    for name, hint in EVERY_KEY:
        kinds = typing.get_args(hint) if typing.get_origin(hint) is typing.Union else (hint,)
        plain = [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is Annotated]
        if not plain or set(plain) - {int, float} or (value is None and type(None) in kinds):
            continue
        if isinstance(value, tuple | list) and len(kinds) > 1:
            continue  # a pair may be what it holds as well
        found += 1
        with pytest.raises(ConfigError, match=rf"^{name}[ =]"):
            conform(name, value, hint)
    assert found > 50


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (Annotated[int, Range(1, 5)], (1, 5), (0, 6)),
        (Annotated[float, Range(0, 1, above=True)], (1e-9, 1), (0.0, 1.0000001)),
        (Annotated[float, Range(0, 1, below=True)], (0, 0.999), (1.0, -1e-9)),
        (Annotated[str, OneOf(("a", "b"))], ("a", "b"), ("c", "")),
        (Annotated[tuple[int, ...], Values(2, rising=True)], ((1, 1), (1, 2, 3)), ((1,), (2, 1))),
        (Annotated[tuple[int, ...], Values(different=True)], ((1, 2),), ((1, 1), ())),
        (tuple[float, float], ((1, 2.5), [0, 0]), ((1,), (1, 2, 3), (1, "a"))),
    ],
    ids=str,
)
def test_the_ends_of_a_range(hint: Any, good: Any, bad: Any) -> None:
    for value in good:
        conform("config.key", value, hint)
    for value in bad:
        with pytest.raises(ConfigError, match=r"^config\.key"):
            conform("config.key", value, hint)


def test_words_are_those_of_the_code_that_reads_them() -> None:
    def words(tree: type, name: str) -> set[str]:
        return set(typing.get_args(typing.get_type_hints(tree, include_extras=True)[name])[1].words)

    assert words(Augment, "crop") == words(Augment, "eval_crop") == set(CROPS)
    assert words(Augment, "resample") == set(FILTERS)
    assert words(Data, "on_bad_image") == set(ON_BAD_IMAGE)
    assert words(Surgery, "mode") == {"none", *MODES}
    assert words(TokenizerOptions, "teacher") == set(TEACHERS)


def test_a_run_s_config_json_is_checked_alike(tmp_path) -> None:
    tree = to_dict(check(default_config()))
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert read_config(tmp_path) == check(default_config())
    for section, key, value in (("optim", "ema", 1.5), ("model", "width", -1), ("data", "mean", [0.5])):
        wrong = {**tree, section: {**tree[section], key: value}}
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(ConfigError, match=rf"config\.{section}\.{key}"):
            read_config(tmp_path)


def test_text_is_read_as_the_kind_of_its_key() -> None:
    config = override(
        load("mapet"),
        {"seed": "7", "optim.lr": "3", "eval.knn_k": "5,10", "augment.flip": "true", "model.depth": "None"}
        | {
            "data.source": "123",
            "model.image_size": "(8, 16)",
            "optim.clip_norm": "2e0",
            "eval.knn": "False",
        },
    )
    built = check(config)
    assert (built.seed, built.optim.lr, built.eval.knn_k, built.augment.flip) == (7, 3.0, (5, 10), True)
    assert (built.model.depth, built.data.source, built.model.image_size) == (None, "123", (8, 16))
    assert (built.optim.clip_norm, built.eval.knn) == (2.0, False)


def test_no_count_is_beyond_int32() -> None:
    """On the devices they are int32: a larger one would wrap."""
    for name, hint in EVERY_KEY:
        kinds = typing.get_args(hint) if typing.get_origin(hint) is typing.Union else (hint,)
        for kind in kinds:
            if typing.get_origin(kind) is Annotated and typing.get_args(kind)[0] is int:
                high = typing.get_args(kind)[1].high
                assert high <= (2**32 - 1 if "seed" in name else MOST), name


def test_a_sentence_is_one_line() -> None:
    assert one_line("a\nb\x1b[31m\u2028c\udcff\td") == "a\\nb\\x1b[31m\\u2028c\\udcff\\td"
    assert one_line("Füße, 写真") == "Füße, 写真"
