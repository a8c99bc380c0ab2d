"""What cases begin from, made once: runs, a tokenizer, a token cache, an encoder's weights. Cases take copies."""

import os
import shutil
import sys
import traceback
from pathlib import Path

from tests.attack.case import MAPET, SMALL, config_file

ENVIRONMENT = "MIM_JAX_ATTACK_BASE"
FINISHED, STOPPED = "finished", "stopped"
"""Runs of `case.train`: one that is finished, and the same, stopped after two of its four updates."""
TOKENIZER, TOKENS, WEIGHTS = "tokenizer.safetensors", "tokens", "encoder.safetensors"


def copy(name: str, target: Path) -> Path:
    """A copy of what has the name above, at `target`, which is given back."""
    source = Path(os.environ[ENVIRONMENT]) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target


def prepare(folder: Path) -> None:
    """Makes them in a process of its own, so that this one starts no backend."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            folder.mkdir(parents=True)
            for number in (1, 2):
                os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            _make(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        print((folder / "log").read_text(), file=sys.stderr)
        raise SystemExit("the directories that the attacks begin from could not be made (see above)")
    os.environ[ENVIRONMENT] = str(folder)


def _make(folder: Path) -> None:
    from mim_jax.config.check import check
    from mim_jax.config.files import load, override
    from mim_jax.tasks import fit_tokenizer, tokenize, train

    more = ("checkpoint.every_steps=1", "checkpoint.keep_last=9")
    given = dict(text.split("=", 1) for text in (*SMALL, *MAPET, *more))
    finished, stopped = folder / FINISHED, folder / STOPPED
    assert train.run(check(override(load(str(config_file("mapet"))), given)), finished) == 0
    shutil.copytree(finished, stopped)
    (stopped / "report.html").unlink()
    for step in (3, 4):
        shutil.rmtree(stopped / "checkpoints" / f"{step:08d}")
    options = {"job.vocabulary": 16, "job.iterations": 1, "job.restarts": 1}
    fitted = check(override(load(str(config_file("tokenizer"))), options))
    assert fit_tokenizer.run(fitted, folder / "fitted") == 0
    shutil.copy(folder / "fitted" / fit_tokenizer.FILE, folder / TOKENIZER)
    assert tokenize.run(tokens_arguments(folder / TOKENIZER, folder / TOKENS)) == 0
    _write_encoder(folder / WEIGHTS)


def tokens_arguments(weights: Path, tokens: Path) -> list[str]:
    """Of python -m mim_jax.tokenize, for the run of `case.train`."""
    values = {
        "model.variant": "mu",
        "method.vocabulary": 16,
        "augment.flip": False,
        "method.weights": weights,
        "method.tokens": tokens,
    }
    return [f"--config={config_file('mapet')}", *(f"--config.{key}={value}" for key, value in values.items())]


def _write_encoder(path: Path) -> None:
    """A ViT of two blocks in timm's names: 8 x 8 pixels, patches of 2."""
    import numpy as np

    from mim_jax.interop.files import write_weights

    draw = np.random.default_rng(0)
    width, slots = 64, 17
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, slots, width),
        "patch_embed.proj.weight": (width, 3, 2, 2),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(2):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }.items():
            shapes[f"blocks.{block}.{name}"] = shape
    write_weights(
        path, {name: 0.02 * draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    )
