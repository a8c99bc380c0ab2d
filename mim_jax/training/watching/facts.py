"""What there is to say of a run before it starts (console) and after it has ended (report)."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils.epath import Path

from mim_jax.config.schema import Config, resolved
from mim_jax.data import Dataset, Loader
from mim_jax.methods.method import Method
from mim_jax.storage import is_bucket, parse_path
from mim_jax.training.epochs import phase_starts
from mim_jax.training.feature_bank import FeatureBank
from mim_jax.training.pretrained import is_weights_file
from mim_jax.training.watching import bad_images, sessions
from mim_jax.training.watching.log import read_metrics, say
from mim_jax.training.watching.report import REPORT
from mim_jax.training.watching.table import as_text, result_rows
from mim_jax.training.workdir import read_config, versions


def announce(
    config: Config,
    method: Method,
    loader: Loader,
    bank: FeatureBank,
    held_out: int,
    shapes: Any,
    workdir: Path,
) -> None:
    """Prints what is about to run. `shapes`: of the parameters; `held_out`: images."""
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    m, s, o, mesh = config.model, config.schedule, config.optim, config.mesh
    say(f"data     {loader.dataset.describe()}; held out: {held_out}")
    say(f"model    {method.net.summary}, patch {m.patch}, {parameters:,} parameters, {m.dtype}")
    say(f"method   {method_text(config)}")
    if config.init:
        say(f"init     {init_text(config)}")
    say(
        f"run      {s.steps} steps of {config.data.batch_size} images ({s.epochs:g} epochs), peak lr {o.lr:g}, warm-up {s.warmup_steps} steps"
    )
    say(f"cost     {flops_text(method)}")
    say(f"devices  {versions()['devices']}, mesh data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor}")
    say(f"memory   {loader.describe_memory()}")
    for line in (*bank.describe(), *method.notes):
        say(f"         {line}")
    say(f"workdir  {workdir}")


def phase_steps(method: Method, total: int, num_examples: int, batch_size: int) -> list[int]:
    """Updates that each phase of the method has in a run of `total`."""
    starts = [min(total, start) for start in phase_starts(method, num_examples, batch_size)]
    return [end - start for start, end in zip(starts, [*starts[1:], total], strict=True)]


def total_flops(method: Method, total: int, num_examples: int, batch_size: int) -> float:
    """Model FLOPs of a whole run's training."""
    steps = phase_steps(method, total, num_examples, batch_size)
    per_image = [phase.method.flops() for phase in method.phases]
    return sum(count * batch_size * flops for count, flops in zip(steps, per_image, strict=True))


def flops_text(method: Method) -> str:
    """Model FLOPs of a training image, per phase."""
    parts = [
        f"{phase.method.flops() / 1e9:.3f} GFLOP" + (f" ({phase.name})" if several else "")
        for several in [len(method.phases) > 1]
        for phase in method.phases
    ]
    return f"{', '.join(parts)} a training image"


def run_facts(
    config: Config, method: Method, dataset: Dataset, held_out: int, workdir: Path
) -> dict[str, str]:
    """Name -> value, in order, for the report."""
    steps, batch_size = resolved(config.schedule.steps), config.data.batch_size
    return {
        "method": method_text(config),
        **({"starts from": init_text(config)} if config.init else {}),
        "network": f"{method.net.summary}, patch {config.model.patch}, {config.model.dtype}",
        "data": f"{dataset.describe()}, fingerprint {dataset.fingerprint}",
        "held-out images": f"{held_out:,}",
        "images seen": f"{steps * config.data.batch_size:,} in {steps:,} steps ({config.schedule.epochs:.4g} epochs)",
        "model FLOPs": f"{flops_text(method)}, {total_flops(method, steps, len(dataset), batch_size):.3g} in all",
        "wall time": sessions.describe(workdir),
        "seed": str(config.seed),
        **versions(),
    }


def method_text(config: Config) -> str:
    """'mae: mask ratio 0.75, decoder width 48'; options that are empty are left out."""
    options = {k: v for k, v in config.method.items() if k != "name" and v not in (None, "")}
    text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in options.items())
    return f"{config.method['name']}: {text}" if text else str(config.method["name"])


def init_text(config: Config) -> str:
    """What the encoder comes from: 'mae-demo (mae, 400 steps), runs/mae-demo'; of somebody else's weights the file."""
    init = str(config.init)
    if is_weights_file(init):
        text = f"{init_name(config)}, {init}"
    else:
        donor = read_config(parse_path(init, "config.init"))
        text = f"{init_name(config)} ({donor.method['name']}, {donor.schedule.steps} steps), {init}"
    surgery = config.surgery
    return text if surgery.mode == "none" else f"{text}; surgery: {surgery.mode}, {surgery.blocks} blocks"


def init_name(config: Config) -> str:
    """The last part of what `config.init` names; '' where it names nothing."""
    if not config.init:
        return ""
    place = parse_path(config.init, "config.init")
    return place.name if is_bucket(place) else os.path.basename(os.path.realpath(place))


def start_word(config: Config) -> str:
    """What the network of step 0 is called."""
    return "at the start" if config.init else "untrained"


def show_result(workdir: Path, bad: Mapping[str, str], start: str = "untrained") -> None:
    """The end of the console's story: the result table, bad images, where the report is. start: see `start_word`."""
    for part in (
        as_text(result_rows(read_metrics(workdir / "metrics.jsonl")), start),
        bad_images.as_text(bad),
    ):
        if part:
            say(f"\n{part}")
    say(f"\nreport: {workdir / REPORT}")
