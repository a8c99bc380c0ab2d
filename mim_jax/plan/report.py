"""A plan for people, and for programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mim_jax.config.schema import Config, resolved
from mim_jax.methods.method import Method
from mim_jax.plan.step import StepPlan
from mim_jax.plan.topology import GIB, Topology


def schedule_hours(steps: Sequence[StepPlan], counts: Sequence[int]) -> float | None:
    """Hours of training, by the estimates of the phases; None where the compiler gave none."""
    seconds = [step.estimated_seconds for step in steps]
    known = [second for second in seconds if second is not None]
    if len(known) < len(seconds):
        return None
    return sum(count * second for count, second in zip(counts, known, strict=True)) / 3600


def images_per_host(config: Config, topology: Topology, steps: Sequence[StepPlan]) -> float | None:
    """Images a second that each host's loader must deliver, in the fastest phase."""
    seconds = [step.estimated_seconds for step in steps if step.estimated_seconds]
    return config.data.batch_size / min(seconds) / topology.num_hosts if seconds else None


def as_json(
    config: Config, method: Method, topology: Topology, steps: Sequence[StepPlan], counts: Sequence[int], rate: float,
    largest: int | None,
) -> dict[str, Any]:  # fmt: skip
    """The plan. The keys of the whole are those of the phase that takes the most memory; `phases` has all."""
    worst = max(steps, key=lambda step: step.memory.total)
    wanted = images_per_host(config, topology, steps)
    return {
        "fits": all(step.memory.fits for step in steps),
        "topology": topology.name,
        "devices": len(topology.devices),
        "hosts": topology.num_hosts,
        "mesh": dataclasses.asdict(config.mesh),
        "global_batch": config.data.batch_size,
        "largest_batch": largest,
        **_step_json(worst),
        "loader_images_per_second_per_host": wanted,
        "loader_images_per_second_per_core": rate,
        "loader_cores_per_host": wanted / rate if wanted else None,
        "estimated_hours": schedule_hours(steps, counts),
        "phases": [
            {"name": step.phase, "steps": count, **_step_json(step)}
            for step, count in zip(steps, counts, strict=True)
        ],
    }


def _step_json(step: StepPlan) -> dict[str, Any]:
    tree = dataclasses.asdict(step)
    del tree["phase"]
    return tree


def as_text(
    config: Config, method: Method, topology: Topology, steps: Sequence[StepPlan], counts: Sequence[int], rate: float,
    largest: int | None,
) -> str:  # fmt: skip
    """The plan in lines."""
    mesh, devices, batch = config.mesh, len(topology.devices), config.data.batch_size
    lines = [
        f"run       {config.method['name']}, {method.net.summary}, {config.model.dtype}",
        f"devices   {topology.name}: {devices} x {topology.devices[0].device_kind}, {_plural(topology.num_hosts, 'host')};"
        f" mesh data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor}",
        f"batch     {batch:,} images, {batch / devices:g} a device"
        + (f", accumulated over {config.optim.accumulation} parts" if config.optim.accumulation > 1 else ""),
    ]
    for step, count in zip(steps, counts, strict=True):
        lines += ["", *_step_lines(step, count, len(steps) > 1)]
    lines.append("")
    if largest is not None:
        lines.append(
            f"largest   {largest:,} images ({largest / devices:g} a device) fit"
            if largest
            else "largest   no batch fits"
        )
    wanted = images_per_host(config, topology, steps)
    if wanted is not None:
        lines.append(
            f"loader    {wanted:,.0f} images/s to each host, at the estimate; a core here delivers {rate:,.0f}: {wanted / rate:.1f} cores"
        )
    else:
        lines.append(
            f"loader    a core here delivers {rate:,.0f} images/s; without an estimate of the step, no number of cores"
        )
    hours = schedule_hours(steps, counts)
    if hours is not None:
        total = resolved(config.schedule.steps)
        lines.append(
            f"schedule  {total:,} steps: {hours:,.1f} hours at the estimate, {hours * devices:,.0f} device hours"
        )
    return "\n".join(lines)


def _step_lines(step: StepPlan, count: int, several: bool) -> list[str]:
    memory = step.memory
    known = (
        f"{memory.arguments / GIB:.2f} GiB state and batch + {memory.temporaries / GIB:.2f} GiB temporaries = "
        if memory.arguments is not None and memory.temporaries is not None
        else ""
    )
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    lines = [f"phase     {step.phase}, {count:,} steps"] if several else []
    lines.append(
        f"memory    {verdict}: {known}{memory.total / GIB:.2f} of {memory.limit / GIB:.2f} GiB a device"
    )
    flops = f"FLOPs     {step.model_flops / 1e12:,.2f} TFLOP a step by our count"
    if step.xla_flops:
        flops += f", {step.xla_flops / 1e12:,.2f} by XLA's ({100 * (step.xla_flops / step.model_flops - 1):+.1f} %)"
    lines.append(flops)
    if step.estimated_seconds is not None:
        mfu = f", MFU {100 * step.estimated_mfu:.1f} %" if step.estimated_mfu is not None else ""
        lines.append(
            f"time      {1e3 * step.estimated_seconds:.1f} ms a step{mfu} (the compiler's estimate, without waiting for other devices)"
        )
        lines.append(
            "of it     "
            + ", ".join(
                f"{part} {100 * share:.1f} %" for part, share in step.parts.items() if share >= 0.0005
            )
        )
    elif memory.fits:
        lines.append("time      the compiler of this device gives no estimate")
    for collective in step.collectives:
        lines.append(
            f"network   {collective.count} x {collective.kind} {collective.dtype}, {collective.bytes / 2**20:,.1f} MiB a device"
        )
    often = [gather for gather in step.gathers if max(gather.forward, gather.backward) > 1]
    if step.gathers:
        lines.append(
            f"gathers   {len(step.gathers)} sharded parameters, each at most once forward and once backward"
            + (", but for" if often else "")
        )
        lines += [f"            {g.parameter}: {g.forward} forward, {g.backward} backward" for g in often]
    lines.append(f"compiled  in {step.compile_seconds:.0f} s")
    return lines


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
