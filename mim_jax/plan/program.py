"""What an optimised program (HLO text) says of itself: the compiler's cycles by part of the network, and its collectives.

Only what runs is counted: the entry computation and the bodies of loops times their trips. A collective that the compiler has
cut into steps, to overlap it with other work, stands in the text several times under one channel: it is counted once.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_FUSED = re.compile(r"calls=%?([\w.\-]+)")
_APPLIED = re.compile(r"to_apply=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
}

PARTS = (
    ("collectives", r"^<collective>"),
    ("optimiser", r"\boptimizer\b"),
    ("corruption", r"\bcorrupt\b"),
    ("loss", r"\bloss\b"),
    ("decoder", r"decoder|/head/|\.head\b|mask_token"),
    ("encoder attention", r"/attn/"),
    ("encoder MLP", r"/mlp/"),
    ("embedding", r"patch_embed|pos_embed|cls_token|\.embed\b"),
    ("encoder norms and rest", r"encoder|block|layers_|ViT|Swin"),
)
"""Part of a step -> the names of its operations, the first that fits; what fits none is "other"."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Operations of one kind and dtype. bytes: of their results on one device, all of them together."""

    kind: str
    dtype: str
    count: int
    bytes: float


@dataclasses.dataclass(frozen=True)
class Gather:
    """How often the arrays of one parameter are gathered: times in the forward and in the backward pass."""

    parameter: str
    dtype: str
    forward: int
    backward: int


@dataclasses.dataclass(frozen=True)
class Program:
    """The instructions of a program by computation, and what the entry runs: (computation, how often)."""

    computations: dict[str, list[str]]
    entry: str

    def executed(self) -> Iterator[tuple[str, float]]:
        """Every instruction that is scheduled, and how often: those of the entry, of loops' bodies and of branches."""
        yield from self._executed(self.entry, 1.0)

    def _executed(self, name: str, times: float) -> Iterator[tuple[str, float]]:
        for line in self.computations[name]:
            yield line, times
            if re.search(r" while\(", line):
                trips = _TRIPS.search(line)
                body = re.search(r"body=%?([\w.\-]+)", line)
                assert body is not None
                yield from self._executed(body[1], times * (int(trips[1]) if trips else 1))
            elif " conditional(" in line and (branches := _BRANCHES.search(line)):
                for branch in re.findall(r"[\w.\-]+", branches[1]):
                    yield from self._executed(branch, times)
            elif re.search(r" call\(", line):
                called = _APPLIED.search(line)
                assert called is not None
                yield from self._executed(called[1], times)

    def inside(self, line: str) -> Iterator[str]:
        """The instruction and all that it is fused of."""
        yield line
        for called in _FUSED.findall(line):
            for inner in self.computations.get(called, ()):
                yield from self.inside(inner)


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`. Raises ValueError where it has no entry."""
    computations: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if (header := _HEADER.match(line)) is not None:
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif line.startswith("}"):
            current = ""
        elif current and _INSTRUCTION.match(line):
            computations[current].append(line)
    if not entry:
        raise ValueError("the program has no entry computation")
    return Program(computations, entry)


def cycles_by_part(program: Program) -> dict[str, float]:
    """The compiler's estimate of cycles, by part of the step, the largest first; {} where it gives none (GPUs, CPUs)."""
    cycles: dict[str, float] = collections.defaultdict(float)
    for line, times in program.executed():
        if (estimate := _CYCLES.search(line)) is not None:
            cycles[part_of(line)] += times * int(estimate[1])
    return dict(sorted(cycles.items(), key=lambda item: -item[1]))


def part_of(line: str) -> str:
    """The part of the step that an instruction belongs to, by the name of the operation it comes from."""
    name = _OP_NAME.search(line)
    text = "<collective>" if _COLLECTIVE.search(line) else name[1] if name else ""
    return next((part for part, pattern in PARTS if re.search(pattern, text)), "other")


def collectives(program: Program) -> list[Collective]:
    """The collectives of one step by kind and dtype, the most bytes first."""
    count: collections.Counter[tuple[str, str]] = collections.Counter()
    size: dict[tuple[str, str], float] = collections.defaultdict(float)
    for kind, arrays, times, _ in _each_collective(program):
        for dtype in {dtype for dtype, _ in arrays}:
            count[kind, dtype] += round(times)
        for dtype, num_bytes in arrays:
            size[kind, dtype] += times * num_bytes
    return [
        Collective(kind, dtype, count[kind, dtype], size[kind, dtype])
        for kind, dtype in sorted(count, key=lambda key: -size[key])
    ]


def gathers(program: Program) -> list[Gather]:
    """How often each parameter's module gathers it, in the forward and in the backward pass."""
    passes: dict[tuple[str, str], collections.Counter[bool]] = {}
    for kind, arrays, times, op_name in _each_collective(program):
        if kind != "all-gather":
            continue
        # Several that were combined into one carry all their names, without what the names have in common.
        names = op_name.split(":")
        if len(names) != len(arrays):
            names = names[:1] * len(arrays)
        for (dtype, num_bytes), name in zip(arrays, names, strict=True):
            whole_name = name if "jvp" in name else _completed(name, names[0])
            counter = passes.setdefault(
                (f"{module_of(whole_name)} ({num_bytes:,.0f} bytes)", dtype), collections.Counter()
            )
            counter["transpose(jvp" in whole_name] += round(times)
    return [
        Gather(name, dtype, counter[False], counter[True])
        for (name, dtype), counter in sorted(passes.items())
    ]


def _completed(name: str, first: str) -> str:
    """A name without its beginning, which is that of the first: cut before "block_03/...", or in the middle of it."""
    beginning, block, _ = first.partition("block_")
    return f"{beginning}{block if re.match(r'[0-9]+/', name) else ''}{name}"


def module_of(op_name: str) -> str:
    """'encoder/block_03/attn/qkv' of an operation's name; "" where it is of no module with parameters."""
    found = re.search(r"((?:encoder|decoder)[\w.]*/)?((?:block|layers?)_\d+/.*)/[^/]+$", op_name)
    if found:
        stack = "decoder/" if "decoder" in (found[1] or op_name.partition("block_")[0]) else "encoder/"
        return stack + re.sub(r"/\w+\._\w+$", "", found[2])
    path = [part for part in op_name.split("/")[1:-1] if not re.search(r"jvp|\.", part)]
    return "/".join(path)


def _each_collective(program: Program) -> Iterator[tuple[str, list[tuple[str, float]], float, str]]:
    """(kind, (dtype, bytes) of every array it makes, how often, name of the operation) of every logical collective."""
    seen: set[tuple[str, str]] = set()
    for executed, times in program.executed():
        scattered = "all-reduce-scatter" in executed
        for line in program.inside(executed):
            match = _COLLECTIVE.search(line)
            if match is None:
                continue
            channel = _CHANNEL.search(line)
            key = (match[1], channel[1] if channel else line.strip())
            if key in seen:
                continue
            seen.add(key)
            result = line[: match.start()].partition(" = ")[2]
            arrays = [(dtype, _num_bytes(dtype, shape)) for dtype, shape in _ARRAY.findall(result)]
            if match[0].endswith("-start(") and len(arrays) % 2 == 0 and match[1] != "all-reduce":
                arrays = arrays[len(arrays) // 2 :]  # (operands, results)
            kind = "reduce-scatter" if scattered and match[1] == "all-reduce" else match[1]
            name = _OP_NAME.search(line)
            yield kind, arrays, times, name[1] if name else ""


def _num_bytes(dtype: str, shape: str) -> float:
    return _BYTES.get(dtype, 4) * math.prod(int(size) for size in shape.split(",") if size)
