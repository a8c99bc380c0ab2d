"""What is said of a run before it starts (console) and after it has ended (report); images that could not be read."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from clu import parameter_overview
from etils.epath import Path

from mim_jax.config.check import ConfigError
from mim_jax.config.schema import Config, resolved
from mim_jax.data import Dataset, Loader
from mim_jax.methods.method import Method
from mim_jax.progress import log
from mim_jax.reading import Unreadable, mapping, read_json, text
from mim_jax.storage import is_bucket, parse_path, write_json
from mim_jax.training.epochs import phase_starts
from mim_jax.training.feature_bank import FeatureBank
from mim_jax.training.monitoring.goodput import describe_goodput
from mim_jax.training.monitoring.metric_writers import read_sessions
from mim_jax.training.pretrained import is_weights_file
from mim_jax.training.run_directory import read_config, versions

BAD_IMAGES = "bad_images.json"
MAX_LISTED_IMAGES = 20


def log_run_info(
    config: Config,
    method: Method,
    loader: Loader,
    bank: FeatureBank,
    held_out: int,
    shapes: Any,
    workdir: Path,
) -> None:
    """Logs what is about to run.

    Args:
        held_out: number of images.
        shapes: of the parameters.
    """
    num_parameters = parameter_overview.count_parameters(shapes)
    m, s, o, mesh = config.model, config.schedule, config.optim, config.mesh
    log(f"data     {loader.dataset.describe()}; held out: {held_out}")
    log(f"model    {method.net.summary}, patch {m.patch}, {num_parameters:,} parameters, {m.dtype}")
    log(f"method   {describe_method(config)}")
    if config.init:
        log(f"init     {describe_init(config)}")
    log(
        f"run      {s.steps} steps of {config.data.batch_size} images ({s.epochs:g} epochs), peak lr {o.lr:g}, warm-up {s.warmup_steps} steps"
    )
    log(f"cost     {describe_flops(method)}")
    log(f"devices  {versions()['devices']}, mesh data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor}")
    log(f"memory   {loader.describe_memory()}")
    for line in (*bank.describe(), *method.notes):
        log(f"         {line}")
    log(f"workdir  {workdir}")


def phase_steps(method: Method, total: int, num_examples: int, batch_size: int) -> list[int]:
    """Updates that each phase of the method has in a run of `total`."""
    starts = [min(total, start) for start in phase_starts(method, num_examples, batch_size)]
    return [end - start for start, end in zip(starts, [*starts[1:], total], strict=True)]


def total_flops(method: Method, total: int, num_examples: int, batch_size: int) -> float:
    """Model FLOPs of a whole run's training."""
    steps = phase_steps(method, total, num_examples, batch_size)
    per_image = [phase.method.flops() for phase in method.phases]
    return sum(count * batch_size * flops for count, flops in zip(steps, per_image, strict=True))


def describe_flops(method: Method) -> str:
    """Model FLOPs of a training image, per phase."""
    parts = [
        f"{phase.method.flops() / 1e9:.3f} GFLOP" + (f" ({phase.name})" if several else "")
        for several in [len(method.phases) > 1]
        for phase in method.phases
    ]
    return f"{', '.join(parts)} a training image"


def run_info(
    config: Config, method: Method, dataset: Dataset, held_out: int, workdir: Path
) -> dict[str, str]:
    """Name -> value, in order, for the report."""
    steps, batch_size = resolved(config.schedule.steps), config.data.batch_size
    return {
        "method": describe_method(config),
        **({"starts from": describe_init(config)} if config.init else {}),
        "network": f"{method.net.summary}, patch {config.model.patch}, {config.model.dtype}",
        "data": f"{dataset.describe()}, fingerprint {dataset.fingerprint}",
        "held-out images": f"{held_out:,}",
        "images seen": f"{steps * config.data.batch_size:,} in {steps:,} steps ({config.schedule.epochs:.4g} epochs)",
        "model FLOPs": f"{describe_flops(method)}, {total_flops(method, steps, len(dataset), batch_size):.3g} in all",
        "wall time": wall_time(workdir),
        **({"goodput": told} if (told := describe_goodput(read_sessions(workdir))) else {}),
        "seed": str(config.seed),
        **versions(),
    }


def describe_method(config: Config) -> str:
    """'mae: mask ratio 0.75, decoder width 48'; options that are empty are left out."""
    options = {k: v for k, v in config.method.items() if k != "name" and v not in (None, "")}
    text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in options.items())
    return f"{config.method['name']}: {text}" if text else str(config.method["name"])


def describe_init(config: Config) -> str:
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


def start_label(config: Config) -> str:
    """What the network of step 0 is called."""
    return "at the start" if config.init else "untrained"


def wall_time(workdir: Path) -> str:
    """'1:02:03 in 2 sessions'."""
    sessions = read_sessions(workdir)
    seconds = round(sum(session["seconds"] for session in sessions))
    count = "1 session" if len(sessions) == 1 else f"{len(sessions)} sessions"
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} (h:mm:ss) in {count}"


def record_bad_images(workdir: Path, datasets: Iterable[Dataset]) -> dict[str, str]:
    """Name -> reason of the bad images this process has met, with those of earlier sessions; kept in the directory.

    Only the first process keeps the file; it has met those of its own part of the batches.
    """
    path = workdir / BAD_IMAGES
    known = _read_bad_images(path)
    for dataset in datasets:
        known |= getattr(dataset, "bad", {})
    if known and jax.process_index() == 0:
        write_json(path, known)
    return known


def _read_bad_images(path: Path) -> dict[str, str]:
    try:
        known: dict[str, str] = read_json(path, mapping(text()))
    except Unreadable as error:
        if error.absent:
            return {}
        raise ConfigError(f"{path} is damaged ({error}): restore it, or move it away") from error
    return known


def format_bad_images(bad: Mapping[str, str]) -> str:
    """For the console: the count, and the first few with their reasons."""
    if not bad:
        return ""
    lines = [f"{format_image_count(bad)} could not be read, replaced by others:"]
    lines += [f"  {where}: {reason}" for where, reason in first_bad_images(bad)]
    if len(bad) > MAX_LISTED_IMAGES:
        lines.append(f"  and {len(bad) - MAX_LISTED_IMAGES} more, in {BAD_IMAGES}")
    return "\n".join(lines)


def format_image_count(bad: Mapping[str, str]) -> str:
    return "1 image" if len(bad) == 1 else f"{len(bad):,} images"


def first_bad_images(bad: Mapping[str, str]) -> list[tuple[str, str]]:
    """The first few in the order of their names."""
    return sorted(bad.items())[:MAX_LISTED_IMAGES]
