"""What a train step's program says before and after a compiler has seen it: dtypes of its sums, products and reductions.

    JAX_PLATFORMS=cpu python -m tests.programs tpu | cuda [NAME ...]

compiles two-block networks ahead of time for TPU v5e or H100 chips that need not be there; libtpu or jax's CUDA build must.
"""

import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from mim_jax.config.check import check
from mim_jax.config.files import load, override
from mim_jax.config.resolve import resolve
from mim_jax.config.schema import Config
from mim_jax.methods import Variables, build_method, complete_options
from mim_jax.plan.topology import open_topology, prepare_process
from mim_jax.training.optimiser import make_optimiser
from mim_jax.training.sharding import batch_sharding, state_shardings
from mim_jax.training.state import state_shapes
from mim_jax.training.step import make_train_step
from tests.small import classes

SHAPE = r"tensor<(?:[\dx]*x)?(\w+)>"
REDUCE = re.compile(rf"stablehlo\.reduce\(.*applies stablehlo\.add .*: \({SHAPE}, ")
DOT = re.compile(r"stablehlo\.dot_general .*: \((tensor<[^>]*>), (tensor<[^>]*>)\) -> (tensor<[^>]*>)")


def element_type(tensor: str) -> str:
    """ "tensor<2x3xbf16>" to "bf16"."""
    return tensor[len("tensor<") : -1].rpartition("x")[2]


def num_elements(tensor: str) -> int:
    """ "tensor<2x3xbf16>" to 6."""
    return int(np.prod([int(size) for size in tensor[len("tensor<") : -1].split("x")[:-1]]))


def sum_types(stablehlo: str) -> list[str]:
    """The dtype of every sum over an axis in a StableHLO program, as it accumulates."""
    return [match[1] for match in REDUCE.finditer(stablehlo)]


def products(stablehlo: str, smallest: int = 0) -> list[tuple[str, str, str]]:
    """(left, right, result) dtypes of every matrix product whose larger operand has at least so many elements."""
    found = []
    for match in DOT.finditer(stablehlo):
        if max(num_elements(match[1]), num_elements(match[2])) >= smallest:
            found.append((element_type(match[1]), element_type(match[2]), element_type(match[3])))
    return found


ELEMENTWISE = (
    "reshape",
    "transpose",
    "concatenate",
    "pad",
    "slice",
    "squeeze",
    "add_any",
    "add",
    "mul",
    "neg",
    "convert_element_type",
)


def reduced_in(jaxpr: Any) -> list[tuple[str, str]]:
    """Of every output of a program: the primitive that reduced it over examples, and in which dtype it came out of that.

    Follows each output back through what only moves or rescales its elements; a conversion to float32 on the way is seen.
    """
    makers = {id(var): eqn for eqn in jaxpr.eqns for var in eqn.outvars}

    def follow(var: Any) -> tuple[str, str]:
        eqn = makers.get(id(var))
        if eqn is None:
            return "input", str(var.aval.dtype)
        if eqn.primitive.name in ("jit", "pjit"):
            inner = eqn.params["jaxpr"].jaxpr
            position = [id(v) for v in eqn.outvars].index(id(var))
            kind, dtype = reduced_in(inner)[position]
            if kind != "input":
                return kind, dtype
            inner_var = inner.outvars[position]
            return follow(eqn.invars[[id(v) for v in inner.invars].index(id(inner_var))])
        if eqn.primitive.name in ELEMENTWISE:
            whole = [v for v in eqn.invars if getattr(v.aval, "ndim", 0) and not hasattr(v, "val")]
            found = [follow(v) for v in whole]
            narrow = [pair for pair in found if pair[1] != "float32"]
            return (narrow or found or [("constant", "float32")])[0]
        return eqn.primitive.name, str(var.aval.dtype)

    return [follow(var) for var in jaxpr.outvars]


def all_reduce_types(optimised: str) -> list[tuple[str, int]]:
    """(dtype, elements) of every array that an optimised HLO program sums over devices."""
    found = []
    for line in optimised.splitlines():
        match = re.search(r"= (.*?) (?:all-reduce|reduce-scatter)(?:-start)?\(", line)
        if match:
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                found.append((dtype, int(np.prod([int(n) for n in shape.split(",") if n]))))
    return found


def bfloat16_sums(optimised: str) -> list[str]:
    """Lines of an optimised HLO program that sum with a bfloat16 accumulator, within or over devices."""
    regions = {
        match[1]
        for match in re.finditer(
            r"^%?(\S+) \([^)]*: bf16\[\], [^)]*: bf16\[\]\) -> bf16\[\] \{\n(?:.*\n)*?\}", optimised, re.M
        )
        if " add(" in match[0]
    }
    sums = re.compile(
        r" (?:reduce|all-reduce|all-reduce-start|reduce-scatter|reduce-window)\(.*to_apply=%?([\w.\-]+)"
    )
    return [line.strip() for line in optimised.splitlines() if (m := sums.search(line)) and m[1] in regions]


def float32_products(optimised: str) -> list[str]:
    """Lines of an optimised HLO program with a matrix product (dot, convolution, a GPU's library call) of a float32 input."""
    call = re.compile(r" (?:dot|convolution|custom-call)\(([^)]*)\)")
    types = dict(re.findall(r"%?([\w.\-]+) = (\w+)\[", optimised))
    types |= dict(re.findall(r"[(,] ?%?([\w.\-]+): (\w+)\[", optimised))  # parameters of fused computations

    def takes_float32(line: str) -> bool:
        match = call.search(line)
        if match is None or ("custom-call" in match[0] and "__cublas" not in line):
            return False
        operands = re.findall(r"%([\w.\-]+)", match[1])[:2]
        return any(types.get(name) == "f32" for name in operands)

    return [line.strip() for line in optimised.splitlines() if takes_float32(line)]


def operation(line: str) -> str:
    """Which operation of ours a line of an optimised program comes from, and what it makes."""
    named = re.search(r'op_name="([^"]*)"', line)
    return f"{line.partition(' = ')[2][:60]} ... {named[1] if named else ''}"


def trace_step(config: Config, batch: dict[str, Any], mesh: Mesh, prepared: Variables) -> Any:
    """The method's train step, traced from shapes alone for the devices of `mesh`, in the method's last phase.

    batch: arrays or ShapeDtypeStructs by key, as the loader makes them. prepared: by the method, or its shapes.
    """
    method = build_method(config)
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    optimiser = make_optimiser(config, method.rules, shapes, 10.0)
    state = state_shapes(method, optimiser, prepared, bool(config.optim.ema))
    step = make_train_step(method.phases[-1].method, optimiser, state, mesh, config, 10.0)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        state_shardings(state, mesh),
    )
    sharding = batch_sharding(mesh)
    rows = {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for key, x in batch.items()}
    return step.trace(placed, rows)


def accelerator_mesh(platform: str, fsdp: int) -> Mesh:
    """Devices that are not there: four chips of a TPU v5e, or eight H100s of one host."""
    name = {"tpu": "v5e:2x2", "cuda": "h100:8"}[platform]
    prepare_process(name)
    devices = np.array(open_topology(name).devices)
    return Mesh(devices.reshape(-1, fsdp, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def main(platform: str, names: Sequence[str]) -> None:
    """Prints what the optimised programs of two-block networks at 224 px hold."""
    for name in names or NETWORKS:
        file, fsdp, overrides = NETWORKS[name]
        mesh = accelerator_mesh(platform, fsdp)
        count = PER_DEVICE * mesh.size
        config = load(f"configs/{file}.py:imagenet")
        override(config, {"model.dtype": "bfloat16", "model.depth": 2, "data.batch_size": count, **overrides})
        resolved = complete_options(
            resolve(check(config), num_examples=1_281_167, num_devices=mesh.size, platform=platform),
            classes(1000),
        )
        method = build_method(resolved)
        size, grid = method.view(True).keys["image"].shape[:2], method.net.grid
        rows = {
            "image": jax.ShapeDtypeStruct((count, *size, 3), np.uint8),
            "flip": jax.ShapeDtypeStruct((count,), np.bool_),
            "valid": jax.ShapeDtypeStruct((count,), np.bool_),
            "box": jax.ShapeDtypeStruct((count, 4), np.float32),
            "tokens": jax.ShapeDtypeStruct((count, grid[0] * grid[1]), np.int32),
            **{k: jax.ShapeDtypeStruct((count,), np.int32) for k in ("index", "epoch", "label")},
        }
        compiled = (
            trace_step(resolved, rows, mesh, Variables()).lower(lowering_platforms=(platform,)).compile()
        )
        text, memory = compiled.as_text(), compiled.memory_analysis()
        reduced = {dtype: 0 for dtype, _ in all_reduce_types(text)}
        for dtype, elements in all_reduce_types(text):
            reduced[dtype] += elements
        wrong = bfloat16_sums(text) + float32_products(text)
        print("".join(f"    {operation(line)}\n" for line in wrong), end="")
        print(
            f"{name}: {len(bfloat16_sums(text))} bfloat16 sums, {len(float32_products(text))} float32 products,"
            f" reduced over devices {reduced}, temporaries {memory.temp_size_in_bytes / 2**30:.2f} GiB",
            flush=True,
        )


PER_DEVICE = 32
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mae": ("mae", 1, {"method.decoder_depth": 2}),
    "mae, fsdp": ("mae", 4, {"method.decoder_depth": 2}),
    "simmim": ("simmim", 1, {}),
    "mapet": ("mapet", 1, {"method.tokens": "ids that are in the batch"}),
    "classify": ("supervised", 1, {"model.layer_scale": 0.1, "model.positions": "learned"}),
}
"""Name -> (config file, devices on the axis fsdp, overrides of its preset imagenet)."""

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
