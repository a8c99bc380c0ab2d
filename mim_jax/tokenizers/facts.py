"""What a tokenizer's file says of its teacher, checked before a network is made of it."""

from typing import Any, NoReturn

from mim_jax.reading import Shape, Unreadable, listed, number, parse_json, record, text, whole

Facts = dict[str, Any]

_SIDE = 2**13
"""Pixels."""


def read_facts(content: str) -> Facts:
    """The facts of a k-means tokenizer: its name, and its teacher as `make_teacher` takes it.

    Raises:
        Unreadable: it is no JSON, lacks something, or says what no teacher can be.
    """
    facts: Facts = parse_json(content, record({"name": text(64), "teacher": check_teacher}))
    return facts


def check_teacher(value: Any, name: str) -> Facts:
    """A teacher's facts, by its kind. Raises Unreadable."""
    kind = record({"kind": text(64)})(value, name)["kind"]
    if kind not in _KINDS:
        raise Unreadable(f"{name}.kind is {kind!r}, not one of {', '.join(_KINDS)}")
    facts: Facts = record({**_COMMON, **_KINDS[kind]}, others=_unknown)(value, name)
    patch = facts["vit"]["patch"] if kind == "vit" else facts.get("patch", 32)
    if any(side < patch or (kind != "clip_resnet" and side % patch) for side in facts["image_size"]):
        raise Unreadable(f"{name}.image_size is {facts['image_size']}, which {patch} pixels do not divide")
    return facts


def _unknown(_value: Any, name: str) -> NoReturn:
    raise Unreadable(f"{name} is not known")


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise Unreadable(f"{name} is not true or false")
    return value


def _or_null(shape: Shape) -> Shape:
    return lambda value, name: None if value is None else shape(value, name)


def _of(*words: str) -> Shape:
    def check(value: Any, name: str) -> str:
        if value not in words:
            raise Unreadable(f"{name} is not one of {', '.join(words)}")
        return str(value)

    return check


_COMMON: dict[str, Shape] = {
    "kind": text(64),
    "image_size": listed(whole(1, _SIDE), shortest=2, longest=2),
    "mean": listed(number(-1e3, 1e3), shortest=3, longest=3),
    "std": listed(number(1e-6, 1e3), shortest=3, longest=3),
}
_VIT = record(
    {"patch": whole(1, _SIDE), "width": whole(1, 2**15), "depth": whole(1, 500), "heads": whole(1, 1024)},
    {
        "mlp_ratio": number(0.01, 100.0),
        "positions": _of("learned", "sincos_2d", "sincos_1d", "none"),
        "relative_bias": _of("none", "shared", "per_block"),
        "cls": _flag,
        "layer_scale": _or_null(number(-1e3, 1e3)),
        "qkv_bias": _of("qkv", "qv", "none"),
        "drop_path": number(0.0, 1.0),
        "norm_eps": number(0.0, 1.0),
        "pre_norm": _flag,
        "activation": _of("gelu", "quick_gelu"),
        "patch_bias": _flag,
        "remat": _of("none", "block", "dots"),
        "attention": _of("auto", "xla", "cudnn"),
    },
    others=_unknown,
)
_KINDS: dict[str, dict[str, Shape]] = {
    "pixels": {"patch": whole(1, _SIDE)},
    "clip_resnet": {
        "layers": listed(whole(1, 200), shortest=4, longest=4),
        "width": whole(1, 2**13),
    },
    "vit": {"vit": _VIT},
}
"""Kind -> what it says beside _COMMON."""
