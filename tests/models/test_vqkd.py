"""VQ-KD against timm's BEiT with the official head and codebook written out in torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import fit
from mim_jax.interop.teachers import vqkd_from
from mim_jax.models.vit import ViTConfig
from mim_jax.models.vqkd import Vqkd, VqkdConfig, map_pixels
from mim_jax.targets.pixels import patchify
from tests.oracles import oracle, photographs, shake, state_of

SMALL = VqkdConfig(
    ViTConfig(image_size=(48, 48), patch=8, width=64, depth=3, heads=4, qkv_bias="qv"),
    code_width=16,
    vocabulary=512,
)


class Official:
    """The released tokenizer's forward and its names, on timm's BEiT; random weights."""

    def __init__(self, config: VqkdConfig) -> None:
        torch, timm = oracle("torch"), oracle("timm")
        vit = config.encoder
        self.encoder = timm.models.beit.Beit(
            img_size=vit.image_size,
            patch_size=vit.patch,
            embed_dim=vit.width,
            depth=vit.depth,
            num_heads=vit.heads,
            init_values=None,
            use_abs_pos_emb=True,
            num_classes=0,
            norm_layer=lambda width, **where: torch.nn.LayerNorm(width, eps=1e-6, **where),
        )
        shake(self.encoder)
        self.head = shake(
            torch.nn.Sequential(
                torch.nn.Linear(vit.width, vit.width),
                torch.nn.Tanh(),
                torch.nn.Linear(vit.width, config.code_width),
            )
        )
        self.codebook = torch.nn.functional.normalize(
            torch.randn(config.vocabulary, config.code_width), dim=-1
        )

    def state(self) -> dict[str, np.ndarray]:
        """As the released file has it, decoder and statistics included."""
        vocabulary = len(self.codebook)
        return {
            **{f"encoder.{name}": value for name, value in state_of(self.encoder).items()},
            **{f"encode_task_layer.{name}": value for name, value in state_of(self.head).items()},
            "quantize.embedding.weight": self.codebook.numpy(),
            "quantize.embedding.cluster_size": np.zeros(vocabulary, np.float32),
            "quantize.embedding.embed_avg": np.zeros(self.codebook.shape, np.float32),
            "quantize.embedding.initted": np.ones(1, np.float32),
            "quantize.cluster_size": np.zeros(vocabulary, np.float32),
            "decoder.patch_embed.proj.weight": np.zeros((64, 16, 1, 1), np.float32),
            "decoder.blocks.0.norm1.weight": np.zeros(64, np.float32),
            "decode_task_layer.0.weight": np.zeros((64, 64), np.float32),
        }

    def distances(self, images: np.ndarray) -> np.ndarray:
        """Squared distances of every patch to every code, [B, L, V]; images in [0, 1]."""
        torch = oracle("torch")
        scaled = torch.from_numpy(images.transpose(0, 3, 1, 2)) * 255.0 / 127.5 - 1.0
        with torch.no_grad():
            rows = self.encoder.fc_norm(self.encoder.forward_features(scaled)[:, 1:])
            codes = torch.nn.functional.normalize(self.head(rows), dim=-1)
            squares = codes.pow(2).sum(-1, keepdim=True) + self.codebook.pow(2).sum(1)
            return (squares - 2 * codes @ self.codebook.T).numpy()


def shapes_of(config: VqkdConfig):
    vit = config.encoder
    patches = jax.ShapeDtypeStruct((1, vit.num_patches, 3 * vit.patch**2), jnp.float32)
    return jax.eval_shape(Vqkd(config).init, jax.random.key(0), patches)["params"]


def same_but_for_ties(ours: np.ndarray, distances: np.ndarray) -> float:
    """The share of equal ids; those that differ must be of two codes within 1e-5 of each other."""
    theirs = distances.argmin(-1)
    chosen = np.take_along_axis(distances, ours[..., None], axis=-1)[..., 0]
    assert (chosen - distances.min(-1) < 1e-5).all()
    return float((ours == theirs).mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "photographs"])
def test_ids_equal_the_official_forward(kind: str) -> None:
    official = Official(SMALL)
    assert isinstance(
        official.encoder.norm, oracle("torch").nn.Identity
    )  # the norm is fc_norm, as in the release
    images = (
        np.random.default_rng(0).random((4, *SMALL.image_size, 3), np.float32)
        if kind == "noise"
        else photographs(SMALL.image_size)
    )
    params = jax.tree.map(jnp.asarray, fit(shapes_of(SMALL), vqkd_from(official.state()), "the tokenizer"))
    patches = patchify(map_pixels(jnp.asarray(images)), SMALL.encoder.patch)

    def both(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        network = Vqkd(SMALL).bind({"params": params})
        return network.ids(patches), network.codes(patches)

    ids, codes = jax.jit(both)(patches)
    assert ids.dtype == jnp.int32 and ids.shape == (len(images), 36) and len(np.unique(ids)) > 20
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), 1.0, atol=1e-5)
    assert same_but_for_ties(np.asarray(ids), official.distances(images)) > 0.99


def test_the_head_stays_in_float32() -> None:
    half = dataclasses.replace(SMALL, encoder=dataclasses.replace(SMALL.encoder, dtype=jnp.bfloat16))
    patches = jax.ShapeDtypeStruct((2, 36, 192), jnp.float32)
    codes = jax.eval_shape(
        lambda params, x: Vqkd(half).apply({"params": params}, x, method="codes"), shapes_of(half), patches
    )
    assert codes.dtype == jnp.float32


def test_the_defaults_are_the_released_shapes() -> None:
    config = VqkdConfig()
    shapes = shapes_of(config)
    assert config.grid == (14, 14) and shapes["codebook"].shape == (8192, 32)
    assert set(shapes["encoder"]["block_11"]["attn"]["qkv"]) == {"kernel", "q_bias", "v_bias"}
    assert "ls1" not in shapes["encoder"]["block_00"] and shapes["encoder"]["pos_embed"].shape == (
        1,
        197,
        768,
    )


def test_partial_and_other_weights_are_refused_in_one_sentence() -> None:
    with pytest.raises(WeightsError, match="not a VQ-KD tokenizer"):
        vqkd_from({"weight": np.zeros(3)})
    state = Official(SMALL).state()
    del state["encode_task_layer.2.weight"], state["encoder.blocks.1.mlp.fc1.bias"]
    with pytest.raises(WeightsError) as error:
        fit(shapes_of(SMALL), vqkd_from(state), "half.safetensors")
    assert str(error.value) == (
        "the weights of half.safetensors do not fit this network: encoder/block_01/mlp/fc1/bias, head_out/kernel are missing"
    )
