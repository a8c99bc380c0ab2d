"""The frozen teachers' weights: CLIP's ResNets, DALL-E's encoder, VQ-KD (docs/papers/mapet.md 8).

Each function takes a state dict in torch's layout to our tree; `files.fit` tells whether it is whole.
"""

import re
from collections.abc import Mapping

import numpy as np

from mim_jax.interop.errors import WeightsError
from mim_jax.interop.official import Renames, nest
from mim_jax.interop.vit import encoder_from
from mim_jax.models.vit import Params

State = Mapping[str, np.ndarray]

_LAYER = r"(?:visual\.)?layer(\d)\.(\d+)\."
_STAGE = r"stages\.(\d)\.(\d+)\."
_CLIP_RESNET: Renames = (
    (r"(?:visual\.)?((?:conv|bn)[123])\.(\w+)", r"\1.\2"),
    (rf"{_LAYER}((?:conv|bn)[123])\.(\w+)", r"layer\1_\2.\3.\4"),
    (rf"{_LAYER}downsample\.0\.(\w+)", r"layer\1_\2.conv_shortcut.\3"),
    (rf"{_LAYER}downsample\.1\.(\w+)", r"layer\1_\2.bn_shortcut.\3"),
    (r"stem\.conv([123])\.(conv|bn)\.(\w+)", r"\2\1.\3"),
    (rf"{_STAGE}conv([123])_\w+\.(conv|bn)\.(\w+)", r"stage\1_\2.\4\3.\5"),
    (rf"{_STAGE}shortcut\.conv\.(conv|bn)\.(\w+)", r"stage\1_\2.\3_shortcut.\4"),
)
_BLOCK = r"(?:.*\.)?blocks\.(group_\d)\.(?:group\.)?(block_\d)\."
_DALLE: Renames = (
    (r"(?:.*\.)?blocks\.input\.(\w+)", r"input.\1"),
    (rf"{_BLOCK}res_path\.(?:path\.)?(conv_\d)\.(\w+)", r"\1_\2.\3.\4"),
    (rf"{_BLOCK}id_path\.(\w+)", r"\1_\2.id_path.\3"),
    (r"(?:.*\.)?blocks\.output\.conv\.(\w+)", r"output.\1"),
)
_LEAVES = {"w": "weight", "b": "bias", "running_mean": "mean", "running_var": "var"}


def clip_resnet_from(state: State) -> Params:
    """OpenAI's CLIP with a ResNet (its image tower), or timm's resnet*_clip, to `ClipResNet`.

    Attention pool, text tower and head are left out.

    Raises:
        WeightsError: it is neither.
    """
    flat = {_zero_padded(name): value for name, value in _renamed(state, _CLIP_RESNET).items()}
    if not any(name.startswith("layer4_") for name in flat):
        kind = "a CLIP with a ViT" if any(".resblocks." in name for name in state) else "something else"
        raise WeightsError(f"these weights are {kind}, not a CLIP ResNet (nothing of its layer4 is in them)")
    return nest(flat)


def dalle_from(state: State) -> Params:
    """OpenAI's DALL-E encoder, or transformers' FlavaImageCodebook, to `DalleEncoder`.

    Raises:
        WeightsError: it is neither.
    """
    flat = _renamed(state, _DALLE)
    if "output.kernel" not in flat:
        raise WeightsError("these weights are not DALL-E's encoder (no blocks.output.conv is in them)")
    return nest(flat)


def vqkd_from(state: State) -> Params:
    """BEiT v2's VQ-KD tokenizer to `Vqkd`; decoder, teacher and the codebook's statistics are left out.

    Raises:
        WeightsError: it is none.
    """
    if "quantize.embedding.weight" not in state:
        raise WeightsError(
            "these weights are not a VQ-KD tokenizer (no quantize.embedding.weight is in them)"
        )
    encoder, _ = encoder_from(state, prefix="encoder.")
    flat = {"codebook": state["quantize.embedding.weight"]}
    for layer, ours in (("0", "head_in"), ("2", "head_out")):
        for kind, leaf in (("weight", "kernel"), ("bias", "bias")):
            name = f"encode_task_layer.{layer}.{kind}"
            if name in state:  # what is missing is told by `fit`, in our names
                flat[f"{ours}.{leaf}"] = state[name].T
    return {"encoder": encoder, **nest(flat)}


def _renamed(state: State, renames: Renames) -> dict[str, np.ndarray]:
    """The tensors that the table knows, by our names and in our layout; the others are left out."""
    flat = {}
    for name, value in state.items():
        matches = (
            (re.fullmatch(pattern, name), replacement) for pattern, replacement in renames
        )  # fmt: skip
        renamed = next((match.expand(replacement) for match, replacement in matches if match), None)
        if renamed is None or name.endswith("num_batches_tracked"):
            continue
        path, _, leaf = renamed.rpartition(".")
        leaf = _LEAVES.get(leaf, leaf)
        if leaf == "weight" and np.ndim(value) == 4:
            # Torch's convolution is [out, in, y, x], ours [y, x, in, out].
            leaf, value = "kernel", np.transpose(value, (2, 3, 1, 0))
        flat[f"{path}.{'scale' if leaf == 'weight' else leaf}"] = np.asarray(value)
    return flat


def _zero_padded(name: str) -> str:
    """layer1_3 to layer1_03; timm's stage0 is our layer1."""
    name = re.sub(r"^stage(\d)_", lambda match: f"layer{int(match[1]) + 1}_", name)
    return re.sub(r"^(layer\d)_(\d)\.", r"\1_0\2.", name)
