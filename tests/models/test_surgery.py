"""Layer surgery: what changes, what stays, and that nothing is lost (docs/papers/dark_secrets.md 2.6)."""

from typing import Any

import jax
import numpy as np
import pytest

from mim_jax.models.surgery import inverse, shuffled_order, surgery

SWIN = (2, 2, 4, 2)


def tree(value: int, depths: tuple[int, ...]) -> dict[str, Any]:
    """Every leaf holds the number of its network and its own."""
    names = ["patch_embed", "norm", *(f"block_{i:02d}" for i in range(sum(depths)))]
    names += [f"merge_{i}" for i in range(len(depths) - 1)]
    parts = {
        name: {"a": np.array([value, number]), "b": {"c": np.array([value, -number])}}
        for number, name in enumerate(names)
    }
    return {"encoder": parts, "head": {"kernel": np.array([value, 99])}}


def leaves(params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    flat = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf) for path, leaf in flat}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    old, new = leaves(before), leaves(after)
    assert old.keys() == new.keys()
    return {name.split("/")[1] for name in old if old[name] != new[name]}


@pytest.mark.parametrize(
    ("depths", "n_last", "expected"),
    [
        ((4,), 0, set()),
        ((4,), 1, {"block_03", "norm"}),
        ((4,), 4, {"block_00", "block_01", "block_02", "block_03", "norm"}),
        (SWIN, 1, {"block_09", "norm"}),
        (SWIN, 2, {"block_08", "block_09", "merge_2", "norm"}),
        (SWIN, 5, {*(f"block_{i:02d}" for i in range(5, 10)), "merge_2", "norm"}),
        (SWIN, 6, {*(f"block_{i:02d}" for i in range(4, 10)), "merge_1", "merge_2", "norm"}),
        (SWIN, 10, {*(f"block_{i:02d}" for i in range(10)), "merge_0", "merge_1", "merge_2", "norm"}),
    ],
)
def test_reinit(depths: tuple[int, ...], n_last: int, expected: set[str]) -> None:
    trained, fresh = tree(1, depths), tree(0, depths)
    made = surgery(trained, fresh, n_last=n_last, depths=depths)
    assert changed(trained, made) == expected
    # every leaf is one network's or the other's, none is both, and none is lost
    old, new, own = leaves(trained), leaves(fresh), leaves(made)
    kept = {name for name in own if own[name] == old[name]}
    taken = {name for name in own if own[name] == new[name]}
    assert kept | taken == set(old) and not kept & taken
    assert jax.tree.structure(made) == jax.tree.structure(trained)


def test_nothing_is_done_without_being_asked() -> None:
    trained, fresh = tree(1, SWIN), tree(0, SWIN)
    for mode in ("reinit", "truncate"):
        assert leaves(surgery(trained, fresh, mode=mode, depths=SWIN)) == leaves(trained)


def test_truncate() -> None:
    trained, fresh = tree(1, SWIN), tree(0, SWIN)
    made = surgery(trained, fresh, mode="truncate", n_last=3, depths=SWIN)
    blocks = {f"block_{i:02d}": part for i, part in enumerate([0, 1, 2, 3, 4, 8, 9])}
    assert sorted(made["encoder"]) == sorted(
        [*blocks, "norm", "patch_embed", "merge_0", "merge_1", "merge_2"]
    )
    for name, source in blocks.items():
        assert made["encoder"][name] is trained["encoder"][f"block_{source:02d}"]
    vit = surgery(tree(1, (4,)), tree(0, (4,)), mode="truncate", n_last=3)
    assert sorted(vit["encoder"]) == ["block_00", "norm", "patch_embed"]


def test_shuffle_moves_blocks_within_a_stage_only() -> None:
    trained, fresh = tree(1, SWIN), tree(0, SWIN)
    made = surgery(trained, fresh, mode="shuffle", depths=SWIN, seed=3)
    assert changed(trained, made) <= {f"block_{i:02d}" for i in range(4, 8)}
    assert sorted(leaves(made).values()) == sorted(leaves(trained).values())
    order = shuffled_order(4, 3)
    assert sorted(order) == [0, 1, 2, 3] and order == shuffled_order(4, 3)
    assert any(shuffled_order(4, seed) != order for seed in range(4))
    back = surgery(made, fresh, mode="shuffle", depths=SWIN, order=inverse(order))
    assert leaves(back) == leaves(trained)
    swapped = surgery(trained, fresh, mode="shuffle", depths=SWIN, stage=0, order=[1, 0])
    assert changed(trained, swapped) == {"block_00", "block_01"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(mode="cut"), "mode of surgery is reinit, truncate, shuffle, not 'cut'"),
        (dict(n_last=11), "n_last=11 of mode reinit must lie in 0..10"),
        (dict(n_last=-1), "must lie in 0..10"),
        (dict(mode="truncate", n_last=4), "a block of the stage must stay"),
        (dict(depths=(2, 2)), "are 4 blocks, but the parameters hold 10"),
        (dict(mode="shuffle", order=[0, 0, 1, 2]), "is a permutation of 0..3"),
        (dict(mode="shuffle", stage=4), "stage=4 must lie in 0..3"),
    ],
)
def test_wrong_requests_are_one_sentence(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        surgery(tree(1, SWIN), tree(0, SWIN), **{"depths": SWIN, **wrong})
