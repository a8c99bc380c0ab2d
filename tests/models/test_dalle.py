"""DALL-E's encoder against transformers' FlavaImageCodebook, on noise and on photographs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import fit
from mim_jax.interop.teachers import dalle_from
from mim_jax.models.dalle import DalleConfig, DalleEncoder, map_pixels
from tests.oracles import oracle, photographs, state_of

SMALL = DalleConfig((48, 64), hidden=16, vocabulary=512)


def codebook(config: DalleConfig, images: np.ndarray | None = None):
    """transformers' network with random weights; on `images` (mapped) all of its ids are about equally likely."""
    torch, transformers = oracle("torch"), oracle("transformers")
    torch.manual_seed(0)
    theirs = transformers.FlavaImageCodebook(
        transformers.FlavaImageCodebookConfig(hidden_size=config.hidden, vocab_size=config.vocabulary)
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            fan = parameter[0].numel() if parameter.ndim == 4 else 1
            parameter.normal_(0.0, (4.0 / fan) ** 0.5 if parameter.ndim == 4 else 0.3)
        if images is not None:  # else what all cells have in common decides, and five ids win everywhere
            logits = theirs(channels_first(images))
            theirs.blocks.output.conv.bias -= logits.mean((0, 2, 3))
    return theirs.eval()


def channels_first(images: np.ndarray):
    return oracle("torch").from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def shapes_of(config: DalleConfig):
    image = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    return jax.eval_shape(DalleEncoder(config).init, jax.random.key(0), image)["params"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "photographs"])
def test_logits_and_ids_equal_transformers(kind: str) -> None:
    images = (
        np.random.default_rng(0).random((3, *SMALL.image_size, 3), np.float32)
        if kind == "noise"
        else photographs(SMALL.image_size)
    )
    mapped = np.asarray(map_pixels(jnp.asarray(images)))
    theirs = codebook(SMALL, mapped)
    with oracle("torch").no_grad():
        logits = theirs(channels_first(mapped))
        ids = theirs.get_codebook_indices(channels_first(mapped))
    params = fit(shapes_of(SMALL), dalle_from(state_of(theirs)), "the codebook")

    def both(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        network = DalleEncoder(SMALL)
        return network.apply({"params": params}, images), network.apply(
            {"params": params}, images, method="ids"
        )

    ours, our_ids = jax.jit(both)(mapped)
    assert ours.shape == (len(images), *SMALL.grid, 512)
    np.testing.assert_allclose(ours, logits.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-4)
    assert our_ids.dtype == jnp.int32 and len(np.unique(our_ids)) > 50
    np.testing.assert_array_equal(our_ids, ids.numpy().reshape(len(images), -1))


def test_openais_names_give_the_same_tree() -> None:
    state = state_of(codebook(SMALL))
    openai = {
        name.replace(".group.", ".")
        .replace(".path.", ".")
        .replace(".weight", ".w")
        .replace(".bias", ".b"): value
        for name, value in state.items()
    }
    assert "blocks.group_1.block_1.res_path.conv_1.w" in openai
    inside = {f"image_codebook.{name}": value for name, value in state.items()}  # in FlavaForPreTraining
    for other in (openai, inside):
        jax.tree.map(np.testing.assert_array_equal, dalle_from(other), dalle_from(state))


def test_the_defaults_are_openais_shapes() -> None:
    shapes, config = shapes_of(DalleConfig()), DalleConfig()
    assert config.grid == (14, 14)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 53_786_240
    assert shapes["output"]["kernel"].shape == (1, 1, 2048, 8192)
    assert shapes["group_4_block_2"]["conv_4"]["kernel"].shape == (1, 1, 512, 2048)


def test_pixels_are_mapped_into_the_laplace_range() -> None:
    np.testing.assert_allclose(map_pixels(jnp.array([0.0, 0.5, 1.0])), [0.1, 0.5, 0.9], atol=1e-7)


def test_other_weights_are_refused_in_one_sentence() -> None:
    with pytest.raises(WeightsError, match="not DALL-E's encoder"):
        dalle_from({"weight": np.zeros(3)})
