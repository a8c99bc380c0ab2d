"""Experiments on the weights of a pre-trained encoder, to fine-tune from (docs/papers/dark_secrets.md 2.6).

Parameters are those of a method: blocks are `encoder/block_00`, ...; a Swin's `encoder/merge_i` lies between its stages i and
i + 1; `encoder/norm` is the final norm. Whatever belongs to a block (norms, LayerScale, position bias) lies inside it and
moves with it; what belongs to a place (positions, a bias that all blocks share, the parity of a Swin's shift) stays.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from mim_jax.models.vit import Params

MODES = ("reinit", "truncate", "shuffle")


def surgery(
    params: Params,
    initial: Params,
    *,
    mode: str = "reinit",
    n_last: int = 0,
    depths: Sequence[int] | None = None,
    stage: int | None = None,
    seed: int = 0,
    order: Sequence[int] | None = None,
) -> Params:
    """The parameters after an operation; leaves are those given, none is copied.

    Args:
        params: of the pre-trained network. initial: of the same network, newly drawn.
        mode: reinit (the last `n_last` blocks, the final norm, and a merging whose whole stage is among them, are the newly drawn ones)
            | truncate (the last `n_last` blocks of `stage` are taken away and later ones move up; build the network with
            that many blocks fewer) | shuffle (the blocks of `stage` change places).
        n_last: 0 = nothing changes.
        depths: blocks of each stage; None = one stage (a ViT).
        stage: None = the longest one (a Swin's third).
        seed: of the shuffle; keep it with the result.
        order: of the shuffle, instead of a draw: place i of the stage takes the block at place order[i].
    Raises:
        ValueError: the request does not fit the network.
    """
    if mode not in MODES:
        raise ValueError(f"the mode of surgery is {', '.join(MODES)}, not {mode!r}")
    encoder = params["encoder"]
    blocks = sorted(name for name in encoder if name.startswith("block_"))
    depths = tuple(depths or (len(blocks),))
    if sum(depths) != len(blocks):
        raise ValueError(
            f"depths={depths} are {sum(depths)} blocks, but the parameters hold {len(blocks)} of them"
        )
    if stage is not None and not 0 <= stage < len(depths):
        raise ValueError(f"stage={stage} must lie in 0..{len(depths) - 1}")
    stages = _stages(blocks, depths)
    chosen = stages[int(np.argmax(depths)) if stage is None else stage]
    if mode == "shuffle":
        changed = _shuffled(encoder, chosen, shuffled_order(len(chosen), seed) if order is None else order)
    elif not 0 <= n_last <= (len(blocks) if mode == "reinit" else len(chosen) - 1):
        most = len(blocks) if mode == "reinit" else f"{len(chosen) - 1} (a block of the stage must stay)"
        raise ValueError(f"n_last={n_last} of mode {mode} must lie in 0..{most}")
    elif mode == "reinit":
        names = reinitialised_parts(stages, n_last)
        changed = {
            name: initial["encoder"][name] if name in names else part for name, part in encoder.items()
        }
    else:
        changed = _without(encoder, blocks, chosen[len(chosen) - n_last :])
    return {**params, "encoder": changed}


def reinitialised_parts(stages: Sequence[Sequence[str]], n_last: int) -> frozenset[str]:
    """Parts of the encoder that `reinit` takes from the newly drawn network."""
    if not n_last:
        return frozenset()
    names = {name for stage in stages for name in stage}
    last = set(sorted(names)[-n_last:])
    merges = {f"merge_{i - 1}" for i, stage in enumerate(stages) if i and last.issuperset(stage)}
    return frozenset(last | merges | {"norm"})


def shuffled_order(count: int, seed: int) -> list[int]:
    """The order of `shuffle`: a function of the seed alone."""
    random = np.random.Generator(np.random.Philox(key=seed))
    return [int(place) for place in random.permutation(count)]


def inverse(order: Sequence[int]) -> list[int]:
    """The order that undoes another."""
    return [int(place) for place in np.argsort(order)]


def _stages(blocks: Sequence[str], depths: Sequence[int]) -> list[list[str]]:
    ends = list(itertools.accumulate(depths))
    return [list(blocks[end - depth : end]) for end, depth in zip(ends, depths, strict=True)]


def _shuffled(encoder: Params, names: Sequence[str], order: Sequence[int]) -> Params:
    if sorted(order) != list(range(len(names))):
        raise ValueError(
            f"an order of {len(names)} blocks is a permutation of 0..{len(names) - 1}, not {list(order)}"
        )
    return {**encoder, **{name: encoder[names[at]] for name, at in zip(names, order, strict=True)}}


def _without(encoder: Params, blocks: Sequence[str], dropped: Sequence[str]) -> Params:
    """The encoder with the blocks that are left numbered anew."""
    rest = {name: part for name, part in encoder.items() if name not in blocks}
    remaining = [name for name in blocks if name not in dropped]
    return {**rest, **{f"block_{index:02d}": encoder[name] for index, name in enumerate(remaining)}}
