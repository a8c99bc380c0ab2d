"""Devices that need not be there: TPU slices by libtpu, GPUs by jax's CUDA build, and this machine's CPU as several."""

import dataclasses
import os
import re

import jax
import numpy as np
from jax.experimental import topologies

from mim_jax.config.check import ConfigError
from mim_jax.training.budget import host_memory

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is said of one device. memory: bytes that a program may use. clock_hz: of the compiler's cycles; None = it gives none."""

    memory: float
    clock_hz: float | None
    per_host: int


TPUS = {
    # Memory: what the compiler itself names as the limit ("of 15.75G hbm"). Clock: the makers' peak FLOP/s over twice the
    # multipliers of a chip (v4, v5p: 8 units of 128 x 128; v5e: 4; v6e: 4 of 256 x 256).
    "v4": Chip(31.75 * GIB, 1.05e9, 4),
    "v5e": Chip(15.75 * GIB, 1.5e9, 4),
    "v5p": Chip(95.74 * GIB, 1.75e9, 4),
    "v6e": Chip(31.25 * GIB, 1.75e9, 4),
}
_GPU = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus}
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
l2_cache_size: {l2} clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {optin}
cuda_compute_capability {{ major: {major} }} registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}" """
"""A GpuTargetConfigProto in text form."""
GPUS = {
    "h100": dict(
        shared=233472, cores=132, fpus=128, bandwidth=3352320000000, l2=52428800, clock=1.98, memory=84929347584,
        optin=232448, major=9, name="NVIDIA H100 80GB HBM3",
    ),
    "a100": dict(
        shared=167936, cores=108, fpus=64, bandwidth=2039000000000, l2=41943040, clock=1.41, memory=84987740160,
        optin=166912, major=8, name="NVIDIA A100-SXM4-80GB",
    ),
}  # fmt: skip
GPUS_PER_HOST = 8
GPU_FLAGS = ("--xla_gpu_enable_triton_gemm=false", "--xla_gpu_autotune_level=0")
"""Without a device nothing can be tuned by trying, and Triton finds no tiles."""
FORMS = "v5e:4x4, v4:2x2x4, v5p:2x2x4, v6e:4x4 (a TPU slice by its shape), h100:8, a100:8 or cpu:8 (a number of devices)"


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices of a slice, of GPUs, or of this machine. platform: "tpu", "cuda", "cpu", as jax lowers for it."""

    name: str
    platform: str
    chip: Chip
    devices: list[jax.Device]

    @property
    def num_hosts(self) -> int:
        return -(-len(self.devices) // self.chip.per_host)


def prepare_process(name: str) -> None:
    """Sets what jax reads before it starts: no real device is looked for. Call it before anything touches a device."""
    kind, _, count = name.partition(":")
    flags = [os.environ.get("XLA_FLAGS", "")]
    if kind == "cpu" and count.isdigit():
        flags.append(f"--xla_force_host_platform_device_count={count}")
    if kind in GPUS:
        flags += GPU_FLAGS
    os.environ["XLA_FLAGS"] = " ".join(flags)
    if kind in TPUS:  # there is no TPU to ask about itself
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor one to share
    jax.config.update("jax_platforms", "cpu")


def open_topology(name: str) -> Topology:
    """The devices that `name` describes (`FORMS`).

    Raises:
        ConfigError: nothing of that name, or the package that knows it is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind in TPUS and re.fullmatch(r"\d+(x\d+){1,2}", shape):
        return _tpu(name, kind, shape)
    if kind in GPUS and shape.isdigit() and int(shape):
        return _gpu(name, kind, int(shape))
    if kind == "cpu" and shape.isdigit() and int(shape):
        devices = jax.devices("cpu")[: int(shape)]
        if len(devices) < int(shape):
            raise ConfigError(f"--topology={name} needs a process of its own, with {shape} CPU devices")
        return Topology(name, "cpu", Chip(host_memory() / int(shape), None, int(shape)), devices)
    raise ConfigError(f"--topology={name} is not known: give {FORMS}")


def _tpu(name: str, kind: str, shape: str) -> Topology:
    sizes = [int(size) for size in shape.split("x")]
    options: dict[str, object] = {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # else the two cores of a chip are two devices
    if int(np.prod(sizes)) < TPUS[kind].per_host:
        options["chips_per_host_bounds"] = [*sizes, 1][:3]
    devices = _describe(name, "tpu", name, "requirements-tpu.txt", options)
    return Topology(name, "tpu", TPUS[kind], devices)


def _gpu(name: str, kind: str, count: int) -> Topology:
    if count > GPUS_PER_HOST and count % GPUS_PER_HOST:
        raise ConfigError(f"--topology={name}: more than one host has a multiple of {GPUS_PER_HOST} GPUs")
    hosts = -(-count // GPUS_PER_HOST)
    options: dict[str, object] = {
        "topology": f"1x{hosts}x{count // hosts}",
        "target_config": _GPU.format(**GPUS[kind]),
    }
    devices = _describe(name, "cuda", kind, "requirements-cuda.txt", options)
    memory = GPUS[kind]["memory"]
    assert isinstance(memory, int)
    return Topology(name, "cuda", Chip(memory, None, GPUS_PER_HOST), devices)


def _describe(
    name: str, platform: str, topology: str, needs: str, options: dict[str, object]
) -> list[jax.Device]:
    try:
        described = topologies.get_topology_desc(platform=platform, topology_name=topology, **options)
    except Exception as error:  # what the plugin raises is its own
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"--topology={name} cannot be described here ({reason}): pip install -r {needs}, or give another shape"
        ) from error
    return list(described.devices)
