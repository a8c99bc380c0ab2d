"""Words of the verdict on networks whose maps are known (docs/papers/dark_secrets.md 3: like a MIM's, like a supervised one's)."""

import dataclasses

import numpy as np
import pytest
from grids import Numbers, family, grid, numbers

from mim_jax.analysis.measure import BlockMeans, NetworkMeans
from mim_jax.analysis.verdict import Finding, RunSummary, findings

WHERE = grid(7)


@pytest.fixture(scope="module")
def layers() -> dict[str, Numbers]:
    betas = {
        "mixed": (0.1, 0.5, 1.0, 2.0),
        "alike": (0.05, 0.06, 0.07, 0.08),
        "far": (0.0, 0.1, 0.2, 0.3),
    }
    return {name: numbers(family(7, own).astype(np.float32), WHERE) for name, own in betas.items()}


def summary(layers: dict[str, Numbers], name: str, kind: str, names: list[str], alike: float) -> RunSummary:
    """A network with these layers, and CKA `alike` between them."""
    blocks = []
    for own in (layers[layer] for layer in names):
        drop, renorm, entropy, patch, cross, _, shannon = (value[0].astype(np.float64) for value in own)
        blocks.append(BlockMeans(WHERE, "px", drop, renorm, entropy, patch, cross, shannon))
    cka = np.full((len(names), len(names)), alike) + (1 - alike) * np.eye(len(names))
    return RunSummary(name, kind, NetworkMeans(blocks, 32, cka, 32))


def words(table: list[Finding]) -> list[str]:
    return [finding.verdict for finding in table]


def test_the_papers_picture_is_seen(layers: dict[str, Numbers]) -> None:
    masked = summary(layers, "masked", "mim", ["mixed"] * 12, 0.9)
    supervised = summary(layers, "labels", "supervised", ["mixed"] * 9 + ["alike"] * 3, 0.4)
    table = findings([masked, supervised])
    assert [finding.claim for finding in table] == ["C1", "C1", "C2", "C2", "C6"]
    assert words(table) == ["seen"] * 5
    assert table[0].numbers == {"masked": "0.500", "labels": "0.000"}
    assert table[0].notes["labels"] == "last 3: local 0.00, global 1.00"
    assert table[1].numbers == {"masked": "0.000", "labels": "1.000"}
    assert table[2].numbers == {"masked": "1.000", "labels": "0.000"}
    assert masked.means.diversity_ratio == pytest.approx(1)
    assert supervised.means.diversity_ratio == pytest.approx(4.73e-4, abs=1e-5)
    assert table[4].numbers == {"masked": "0.900", "labels": "0.400"}


def test_the_opposite_is_not_seen(layers: dict[str, Numbers]) -> None:
    masked = summary(layers, "masked", "mim", ["mixed"] * 9 + ["alike"] * 3, 0.4)
    supervised = summary(layers, "labels", "supervised", ["mixed"] * 12, 0.4)
    assert words(findings([masked, supervised])) == ["not seen"] * 5


def test_one_run_of_a_kind_that_does_not_show_it_is_enough(layers: dict[str, Numbers]) -> None:
    good = summary(layers, "a", "mim", ["mixed"] * 12, 0.9)
    bad = summary(layers, "b", "mim", ["mixed"] * 9 + ["alike"] * 3, 0.5)
    supervised = summary(layers, "c", "supervised", ["mixed"] * 9 + ["alike"] * 3, 0.48)
    other = summary(layers, "d", "other", ["alike"] * 12, 0.99)
    assert words(findings([good, bad, supervised, other])) == [
        "not seen",
        "seen",
        "not seen",
        "seen",
        "not seen",
    ]
    assert words(findings([good, supervised, other])) == ["seen"] * 5  # fine-tuned runs have no say


def test_what_cannot_be_said(layers: dict[str, Numbers]) -> None:
    masked = summary(layers, "masked", "mim", ["mixed"] * 12, 0.9)
    table = findings([masked])
    assert words(table) == ["seen", "cannot say", "seen", "cannot say", "cannot say"]
    assert table[1].reason == "no supervised run is among them"
    assert table[4].reason == "it takes a masked and a supervised run"
    shallow = summary(layers, "small", "supervised", ["mixed"] * 3, 0.4)
    table = findings([masked, shallow])
    assert words(table) == ["seen", "cannot say", "seen", "cannot say", "seen"]
    assert table[3].reason == "small has 3 layers: none before the last 3"
    assert table[3].numbers["small"] == "-"
    untrained = summary(layers, "fresh", "supervised", ["alike"] * 12, 0.4)
    table = findings([masked, untrained])
    assert table[1].reason == "fresh has no local heads in its lower layers either"
    assert table[3].reason == "the heads of fresh are alike in its lower layers already (untrained?)"
    blind = dataclasses.replace(masked, means=dataclasses.replace(masked.means, cka=None))
    assert findings([blind, untrained])[4].reason == "CKA was not computed"
