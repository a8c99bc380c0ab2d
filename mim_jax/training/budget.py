"""The memory that a run cannot do without, computed from its configuration before anything is allocated."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mim_jax.config.check import ConfigError
from mim_jax.config.schema import Config, resolved
from mim_jax.data import View
from mim_jax.methods.method import Method
from mim_jax.methods.rules import name_of
from mim_jax.models.vit import ViTConfig

GIB = 2**30
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
TABLES = 8
"""Bytes of a number of the position tables, which are made in float64."""
FEWEST_VISIBLE = 4
"""Methods that hide patches run on a quarter of them at least: less is not counted."""


class Need(NamedTuple):
    """Bytes that something takes at least. key, value: what makes it so large; enough: the largest value that would fit."""

    what: str
    bytes: float
    key: str
    value: int
    enough: int | None = None


def host_memory() -> int:
    """Bytes of memory that processes may have on this host: the machine's, or its container's."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in CGROUP_LIMITS:
        path = Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def device_memory() -> int | None:
    """Bytes of one local device; None where devices are the host's cores."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


def check_memory(config: Config, method: Method, train_view: View) -> None:
    """Refuses a run that cannot fit into this machine, whatever else happens.

    Counted is what is certain: batches of images, parameters with their moments and gradients, the inputs of the blocks and
    the attention of one. A run that passes may still be too large.

    Raises:
        ConfigError: naming the key to lower.
    """
    host, device = host_needs(config, method, train_view), device_needs(config, method, train_view)
    have, own = host_memory(), device_memory()
    if own is None:
        refuse_beyond(
            [*host, *(need._replace(bytes=need.bytes * _local_devices(config)) for need in device)], have
        )
    else:
        refuse_beyond(host, have)
        refuse_beyond(device, own)


def check_parameters(config: Config, shapes: Any) -> None:
    """Refuses a network whose parameters, gradients and moments do not fit. shapes: of the parameters.

    Raises:
        ConfigError: naming the largest parameter.
    """
    leaves = [
        (math.prod(leaf.shape), name_of(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    mesh, own = config.mesh, device_memory()
    total = 4.0 * sum(size for size, _, _ in leaves) * _copies(config) / (mesh.fsdp * mesh.tensor)
    total *= 1 if own else _local_devices(config)
    have = own or host_memory()
    if total > have:
        _, name, leaf = max(leaves, key=lambda entry: entry[0])
        raise ConfigError(
            f"the parameters with their gradients and moments would take {total / GIB:,.1f} GiB, and there are"
            f" {have / GIB:,.1f} GiB: lower what makes {name} {list(leaf.shape)}, the largest, so large"
        )


def _local_devices(config: Config) -> float:
    """Devices of the mesh on this host."""
    mesh = config.mesh
    return mesh.data * mesh.fsdp * mesh.tensor / jax.process_count()


def _copies(config: Config) -> int:
    """Parameters, gradients, two moments, and the moving average."""
    return 4 + (config.optim.ema > 0)


def refuse_beyond(needs: list[Need], have: int) -> None:
    """ConfigError that names the largest need, where all of them are more than there is."""
    total = sum(need.bytes for need in needs)
    if total <= have:
        return
    most = max(needs, key=lambda need: need.bytes)
    fit = f"lower it to {most.enough:,} or less" if most.enough else "lower it"
    raise ConfigError(
        f"config.{most.key}={most.value} cannot be run here: {most.what} would take at least {most.bytes / GIB:,.1f} GiB, and"
        f" there are {have / GIB:,.1f} GiB: {fit}"
    )


def host_needs(config: Config, method: Method, train_view: View) -> list[Need]:
    """What one host holds: batches that are made ahead, a batch of an evaluation, fixed tables of positions."""
    have, processes = host_memory(), jax.process_count()
    ahead = max(1, config.data.prefetch) + 1
    needs = []
    for key, view, size, copies in (
        ("data.batch_size", train_view, config.data.batch_size, ahead),
        ("eval.batch_size", method.feature_view, resolved(config.eval.batch_size), 1),
    ):
        if "image" not in view.keys:
            continue
        image = view.keys["image"].num_bytes
        total = size / processes * image * copies
        enough = int(have * processes / 2 / image / copies)
        if key == "data.batch_size" and copies > 3 and size / processes * image * 3 < have:
            needs.append(Need("batches made ahead", total, "data.prefetch", config.data.prefetch))
        elif enough < 1:
            needs.append(Need("images", total, "model.image_size", max(view.keys["image"].shape)))
        else:
            needs.append(Need("batches of images", total, key, size, enough))
    if isinstance(method.net, ViTConfig) and method.net.positions.startswith("sincos"):
        table = float(method.net.num_tokens) * method.net.width * TABLES
        needs.append(Need("the table of positions", table, "model.image_size", max(method.net.image_size)))
    return needs


def device_needs(config: Config, method: Method, train_view: View) -> list[Need]:
    """What one device holds: its share of a batch and, of a ViT, of the parameters and of what the backward pass keeps."""
    net, mesh, batch = method.net, config.mesh, config.data.batch_size
    shards = mesh.data * mesh.fsdp
    part = batch / shards / config.optim.accumulation
    image = 3.0 * net.image_size[0] * net.image_size[1]
    side, fewest = max(net.image_size), shards * config.optim.accumulation
    have = device_memory() or host_memory() / _local_devices(config)

    def of_batch(what: str, each: float) -> Need:
        """Bytes that one image of a part takes."""
        enough = int(have / 2 / each) * fewest if each else None
        if enough is not None and enough < 1:
            return Need(what, part * each, "model.image_size", side)
        return Need(what, part * each, "data.batch_size", batch, enough)

    needs = [of_batch("images as float32", 4 * image)] if "image" in train_view.keys else []
    if not isinstance(net, ViTConfig):
        return needs
    kept = 1 if net.remat != "none" else net.depth
    number = 2 if config.model.dtype == "bfloat16" else 4
    tokens = net.num_tokens / FEWEST_VISIBLE
    needs.append(of_batch("the inputs of the blocks", tokens * net.width * kept * number))
    if net.attention != "cudnn":
        needs.append(of_batch("the attention of one block", net.heads * tokens * tokens * number))
    parameters = (4 + 2 * net.mlp_ratio) * net.width**2 * net.depth * 4 * _copies(config)
    needs.append(
        Need(
            "parameters with their moments", parameters / (mesh.fsdp * mesh.tensor), "model.width", net.width
        )
    )
    return needs
