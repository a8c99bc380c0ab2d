"""Parameter names of ViTs in other libraries, translated to timm's names, in torch's layout.

`official.from_mae` converts these to our tree. A name without an entry is left out, unless it belongs to what computes the
features.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from mim_jax.interop.errors import WeightsError
from mim_jax.interop.official import Renames

Flat = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Naming:
    """One way of naming a ViT's parameters; all but the first two fields are patterns that match whole names.

    patch: name of the patch projection's weight. distinctive: a name that only this naming has. blocks: what
    the names in blocks begin with. renames: from, to; the first match wins. norm_eps, activation: of the code that uses
    these names (weights do not tell).
    """

    name: str
    patch: str
    distinctive: str
    blocks: str
    renames: Renames
    norm_eps: float = 1e-6
    activation: str = "gelu"

    def is_unsupported(self, name: str) -> bool:
        """Whether a name that is in no table changes the features: part of a block, or a token or norm of its own."""
        return re.fullmatch(rf"{self.blocks}\.\d+\..*|{UNSUPPORTED}", name) is not None

    def rename(self, name: str) -> str | None:
        """The name in the common vocabulary; None = in no table."""
        for pattern, replacement in self.renames:
            if match := re.fullmatch(pattern, name):
                return match.expand(replacement)
        return None


UNSUPPORTED = r"(.*\.)?(reg_token|register_tokens|storage_tokens|dist_token|distillation_token|rope.*)|patch_embed\..*norm.*"
BUFFERS = r"(.*\.)?(relative_position_index|position_ids|num_batches_tracked)"
"""Follow from the rest; not weights."""

_WB = r"(weight|bias)"
_N = r"(\d+)"

TIMM = Naming(
    "timm",
    "patch_embed.proj.weight",
    r"blocks\.0\.norm1\.weight",
    "blocks",
    (
        (rf"(cls_token|pos_embed|patch_embed\.proj\.{_WB}|norm\.{_WB}|fc_norm\.{_WB})", r"\1"),
        (rf"(blocks\.{_N}\.(norm[12]|attn\.(qkv|q|kv|proj)|mlp\.fc[12])\.{_WB})", r"\1"),
        (rf"(blocks\.{_N}\.(attn\.[qv]_bias|gamma_[12]|ls[12]\.gamma))", r"\1"),
        (rf"blocks\.{_N}\.attn\.relative_position_bias_table", r"blocks.\1.relative_position_bias.table"),
        (r"rel_pos_bias\.relative_position_bias_table", "encoder.relative_position_bias.table"),
        (r"norm_pre\.weight", "encoder.norm_pre.scale"),
        (r"norm_pre\.bias", "encoder.norm_pre.bias"),
    ),
)
"""timm, DINO, DeiT, MoCo v3, MAE, MaPeT, AMT, BEiT, SimMIM."""

_HF = rf"(?:encoder\.layer|layers)\.{_N}\."
HUGGING_FACE = Naming(
    "Hugging Face ViT",
    "embeddings.patch_embeddings.projection.weight",
    r"(encoder\.layer|layers)\.0\.layernorm_before\.weight",
    r"(encoder\.layer|layers)",
    (
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (rf"embeddings\.patch_embeddings\.projection\.{_WB}", r"patch_embed.proj.\1"),
        (rf"{_HF}attention\.attention\.(q)uery\.{_WB}", r"blocks.\1.attn.\2.\3"),
        (rf"{_HF}attention\.attention\.(k)ey\.{_WB}", r"blocks.\1.attn.\2.\3"),
        (rf"{_HF}attention\.attention\.(v)alue\.{_WB}", r"blocks.\1.attn.\2.\3"),
        (rf"{_HF}attention\.([qkv])_proj\.{_WB}", r"blocks.\1.attn.\2.\3"),
        (rf"{_HF}attention\.(?:output\.dense|o_proj)\.{_WB}", r"blocks.\1.attn.proj.\2"),
        (rf"{_HF}(?:intermediate\.dense|mlp\.fc1)\.{_WB}", r"blocks.\1.mlp.fc1.\2"),
        (rf"{_HF}(?:output\.dense|mlp\.fc2)\.{_WB}", r"blocks.\1.mlp.fc2.\2"),
        (rf"{_HF}(?:layernorm_before|norm1)\.{_WB}", r"blocks.\1.norm1.\2"),
        (rf"{_HF}(?:layernorm_after|norm2)\.{_WB}", r"blocks.\1.norm2.\2"),
        (rf"{_HF}(?:lambda_|layer_scale)([12])(?:\.lambda1)?", r"blocks.\1.gamma_\2"),
        (
            rf"{_HF}(?:attention\.attention\.)?relative_position_bias\.relative_position_bias_table",
            r"blocks.\1.relative_position_bias.table",
        ),
        (
            r"(?:encoder\.relative|shared)_position_bias\.relative_position_bias_table",
            "encoder.relative_position_bias.table",
        ),
        (rf"layernorm\.{_WB}", r"norm.\1"),
        (rf"pooler\.layernorm\.{_WB}", r"fc_norm.\1"),
    ),
    norm_eps=1e-12,
)
"""ViT, DeiT, ViTMAE, BEiT, DINO; in files (encoder.layer.N) and in memory since version 5 (layers.N)."""

DINOV2 = dataclasses.replace(
    HUGGING_FACE,
    name="Hugging Face DINOv2",
    distinctive=r"(encoder\.layer|layers)\.0\.layer_scale1\.lambda1",
    norm_eps=1e-6,
)

HUGGING_FACE_CLIP = Naming(
    "Hugging Face CLIP",
    "embeddings.patch_embedding.weight",
    r"pre_layrnorm\.weight",
    r"encoder\.layers",
    (
        (r"embeddings\.class_embedding", "cls_token"),
        (r"embeddings\.position_embedding\.weight", "pos_embed"),
        (rf"embeddings\.patch_embedding\.{_WB}", r"patch_embed.proj.\1"),
        (r"pre_layrnorm\.weight", "encoder.norm_pre.scale"),  # sic
        (r"pre_layrnorm\.bias", "encoder.norm_pre.bias"),
        (rf"post_layernorm\.{_WB}", r"norm.\1"),
        (rf"encoder\.layers\.{_N}\.self_attn\.([qkv])_proj\.{_WB}", r"blocks.\1.attn.\2.\3"),
        (rf"encoder\.layers\.{_N}\.self_attn\.out_proj\.{_WB}", r"blocks.\1.attn.proj.\2"),
        (rf"encoder\.layers\.{_N}\.layer_norm([12])\.{_WB}", r"blocks.\1.norm\2.\3"),
        (rf"encoder\.layers\.{_N}\.mlp\.(fc[12])\.{_WB}", r"blocks.\1.mlp.\2.\3"),
    ),
    norm_eps=1e-5,
    activation="quick_gelu",
)

OPENAI_CLIP = Naming(
    "OpenAI CLIP",
    "conv1.weight",
    r"ln_pre\.weight",
    r"transformer\.resblocks",
    (
        (r"class_embedding", "cls_token"),
        (r"positional_embedding", "pos_embed"),
        (rf"conv1\.{_WB}", r"patch_embed.proj.\1"),
        (r"ln_pre\.weight", "encoder.norm_pre.scale"),
        (r"ln_pre\.bias", "encoder.norm_pre.bias"),
        (rf"ln_post\.{_WB}", r"norm.\1"),
        (rf"transformer\.resblocks\.{_N}\.ln_([12])\.{_WB}", r"blocks.\1.norm\2.\3"),
        (rf"transformer\.resblocks\.{_N}\.attn\.in_proj_{_WB}", r"blocks.\1.attn.qkv.\2"),
        (rf"transformer\.resblocks\.{_N}\.attn\.out_proj\.{_WB}", r"blocks.\1.attn.proj.\2"),
        (rf"transformer\.resblocks\.{_N}\.mlp\.c_fc\.{_WB}", r"blocks.\1.mlp.fc1.\2"),
        (rf"transformer\.resblocks\.{_N}\.mlp\.c_proj\.{_WB}", r"blocks.\1.mlp.fc2.\2"),
    ),
    norm_eps=1e-5,
    activation="quick_gelu",
)

NAMINGS = (TIMM, DINOV2, HUGGING_FACE, HUGGING_FACE_CLIP, OPENAI_CLIP)


def detect_naming(state: Mapping[str, np.ndarray], prefix: str | None) -> tuple[Naming, str]:
    """The naming, and what the names of the encoder begin with."""
    candidates: dict[str, Naming] = {}
    for key, value in state.items():
        for naming in NAMINGS:
            encoder_prefix = key.removesuffix(naming.patch)
            if encoder_prefix == key or np.ndim(value) != 4 or np.shape(value)[1] != 3:
                continue  # VQ-KD's decoder has a patch projection, too, from 32 channels
            names = (name.removeprefix(encoder_prefix) for name in state if name.startswith(encoder_prefix))
            if any(re.fullmatch(naming.distinctive, name) for name in names):
                candidates.setdefault(encoder_prefix, naming)
    if prefix is not None:
        candidates = {
            encoder_prefix: naming
            for encoder_prefix, naming in candidates.items()
            if encoder_prefix == prefix
        }
    if len(candidates) > 1:  # MoCo: the network and its moving average
        candidates = {
            encoder_prefix: naming
            for encoder_prefix, naming in candidates.items()
            if "momentum" not in encoder_prefix
        }
    if not candidates:
        under = f" under the prefix {prefix!r}" if prefix else ""
        sample = ", ".join(list(state)[:3])
        raise WeightsError(
            f"no ViT was recognised{under} in {len(state)} tensors ({sample}, ...): the names must be those of timm, of "
            "Hugging Face's ViT, BEiT, DINOv2 or CLIP, or of OpenAI's CLIP"
        )
    if len(candidates) > 1:
        raise WeightsError(f"there are several ViTs, under {', '.join(candidates)}: name the prefix of one")
    encoder_prefix, naming = next(iter(candidates.items()))
    return naming, encoder_prefix


def translate(state: Mapping[str, np.ndarray], naming: Naming, prefix: str) -> tuple[Flat, list[str]]:
    """The encoder's tensors by timm's names, and the names that are left out."""
    flat: Flat = {}
    left_out = []
    blocks: set[int] = set()
    for key, value in state.items():
        inside = key.startswith(prefix)
        name = key.removeprefix(prefix)
        if inside and (block := re.fullmatch(rf"{naming.blocks}\.([^.]*)\..*", name)):
            blocks.add(_block_index(block.groups()[-1], key))
        # Hugging Face's BeitForMaskedImageModeling has the final norm beside the encoder.
        is_final_norm = key.startswith("layernorm.") and f"{prefix}{key}" not in state
        renamed = naming.rename(name) if inside or is_final_norm else None
        if renamed is not None:
            flat[renamed] = np.asarray(value)
        elif inside and naming.is_unsupported(name) and not re.fullmatch(BUFFERS, name):
            raise WeightsError(f"these weights have {key}, a part that the ViT here does not have")
        elif not re.fullmatch(BUFFERS, name):
            left_out.append(key)
    if missing := sorted(set(range(max(blocks, default=-1) + 1)) - blocks):
        raise WeightsError(f"these weights have a block {max(blocks)}, but no block {missing[0]}")
    return flat, left_out


def _block_index(written: str, key: str) -> int:
    """The number of a block: 0 to 99, in ASCII digits, without leading zeros."""
    if not re.fullmatch(r"[1-9]?[0-9]", written):
        raise WeightsError(
            f"these weights have {key[:80]!r}, but {written[:20]!r} is no number of a block: blocks are 0, 1, 2, ... up to 99"
        )
    return int(written)
