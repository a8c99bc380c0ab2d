"""A plan: what is read off an optimised program, and the command for this machine's CPU as eight devices."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mim_jax.config.check import ConfigError
from mim_jax.plan.program import Collective, Gather, collectives, cycles_by_part, gathers, module_of, parse
from mim_jax.plan.step import Memory, largest_batch
from mim_jax.plan.topology import open_topology

FORWARD = "jit(train_step)/jvp(forward)/Net/encoder.apply_blocks/block_00"
BACKWARD = "jit(train_step)/transpose(jvp(forward))/Net/encoder.apply_blocks/block_00"
PROGRAM = f"""HloModule jit_train_step

%fused (param_0: bf16[8,64]) -> bf16[32,64] {{
  %param_0 = bf16[8,64]{{1,0}} parameter(0)
  ROOT %all-gather.1 = bf16[32,64]{{1,0:T(8,128)(2,1)}} all-gather(%param_0), channel_id=7, dimensions={{0}}, metadata={{op_name="{FORWARD}/mlp/fc1/dot_general"}}
}}

%fused.again (param_0.1: bf16[8,64]) -> bf16[32,64] {{
  %param_0.1 = bf16[8,64]{{1,0}} parameter(0)
  ROOT %all-gather.2 = bf16[32,64]{{1,0}} all-gather(%param_0.1), channel_id=7, dimensions={{0}}, metadata={{op_name="{FORWARD}/mlp/fc1/dot_general"}}
}}

%never_called (x: f32[4]) -> f32[4] {{
  %x = f32[4]{{0}} parameter(0)
  ROOT %all-reduce.9 = f32[4]{{0}} all-reduce(%x), channel_id=99, to_apply=%add, backend_config={{"estimated_cycles":"1000000"}}
}}

%body (carry: (f32[16])) -> (f32[16]) {{
  %carry = (f32[16]{{0}}) parameter(0)
  %dot = f32[16]{{0}} fusion(%carry), kind=kLoop, calls=%add, metadata={{op_name="{FORWARD}/attn/qkv/dot_general"}}, backend_config={{"estimated_cycles":"10"}}
  ROOT %all-reduce.2 = f32[16]{{0}} all-reduce(%dot), channel_id=8, to_apply=%add, metadata={{op_name="jit(train_step)/optimizer/add"}}
}}

ENTRY %main (a: bf16[8,64]) -> f32[16] {{
  %a = bf16[8,64]{{1,0}} parameter(0)
  %one = bf16[32,64]{{1,0}} fusion(%a), kind=kCustom, calls=%fused, metadata={{op_name="{FORWARD}/mlp/fc1/dot_general"}}, backend_config={{"estimated_cycles":"100"}}
  %two = bf16[32,64]{{1,0}} fusion(%a), kind=kCustom, calls=%fused.again, metadata={{op_name="jit(train_step)/optimizer/mul"}}, backend_config={{"estimated_cycles":"40"}}
  %start = (bf16[8,64]{{1,0}}, bf16[32,64]{{1,0}}) all-gather-start(%a), channel_id=9, dimensions={{0}}, metadata={{op_name="{BACKWARD}/mlp/fc1/dot_general"}}, backend_config={{"estimated_cycles":"5"}}
  %done = bf16[32,64]{{1,0}} all-gather-done(%start)
  %loop = (f32[16]{{0}}) while(%a), condition=%never_called, body=%body, backend_config={{"known_trip_count":{{"n":"3"}}}}
  ROOT %out = f32[16]{{0}} get-tuple-element(%loop), index=0
}}
"""


def test_only_what_runs_is_counted_and_each_channel_once() -> None:
    program = parse(PROGRAM)
    assert cycles_by_part(program) == {
        "encoder MLP": 100.0,
        "optimiser": 40.0,
        "encoder attention": 30.0,
        "collectives": 5.0,
    }
    assert collectives(program) == [
        Collective("all-gather", "bf16", 2, 2 * 32 * 64 * 2.0),
        Collective("all-reduce", "f32", 3, 3 * 16 * 4.0),
    ]
    assert gathers(program) == [Gather("encoder/block_00/mlp/fc1 (4,096 bytes)", "bf16", 1, 1)]
    with pytest.raises(ValueError, match="no entry"):
        parse("HloModule nothing")


def test_gathers_that_were_combined_are_told_apart() -> None:
    names = f"{BACKWARD}/attn/qkv/dot_general:1/mlp/fc2/dot_general"
    (first, second) = gathers(
        parse(
            "ENTRY %main (a: f32[2]) -> f32[2] {\n"
            f'  ROOT %g = (f32[4]{{0}}, f32[8]{{0}}) all-gather(%a, %a), channel_id=1, metadata={{op_name="{names}"}}\n'
            "}\n"
        )
    )
    assert first == Gather("encoder/block_00/attn/qkv (16 bytes)", "f32", 0, 1)
    assert second == Gather("encoder/block_1/mlp/fc2 (32 bytes)", "f32", 0, 1)
    assert (
        module_of("jit(train_step)/jvp(forward)/Net/decoder.apply_blocks/block_02/attn/qkv/qkv._project/dot")
        == "decoder/block_02/attn/qkv"
    )
    assert module_of("jit(train_step)/jvp(forward)/head/dot_general") == "head"


@pytest.mark.parametrize(
    ("constant", "per_image", "expected"), [(2.0, 0.01, 352), (5.6, 0.01, 0), (0.0, 0.001, 5504)]
)
def test_largest_batch(constant: float, per_image: float, expected: int) -> None:
    """Memory linear in the batch, and a limit of 5.52: the largest multiple of 32 below it, compiled and not guessed."""
    tried: list[int] = []

    def memory(batch: int) -> Memory:
        tried.append(batch)
        return Memory(None, None, constant + per_image * batch, 5.52)

    assert largest_batch(memory, 512, 32) == expected
    assert len(tried) == len(set(tried)) <= 6


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("tpu", "is not known: give v5e:4x4"), ("v5e:9", "is not known"), ("h100:12", "multiple of 8"), ("cpu:0", "is not known")],
)  # fmt: skip
def test_unknown_topologies(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        open_topology(name)


def plan(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mim_jax.plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_for_eight_cpu_devices(tmp_path: Path) -> None:
    """fsdp=4: bytes of the state are those that the rules give; XLA's FLOPs are near ours; nothing is gathered twice."""
    done = plan(
        "--config=configs/mae.py", "--topology=cpu:8", "--config.mesh.fsdp=4", "--config.model.variant=ti", "--config.model.depth=2",
        "--config.data.batch_size=64", f"--json={tmp_path}/plan.json", "--loader_rate=100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        re.search(r"memory    fits: .* GiB a device", done.stdout)
        and "mesh data=2 fsdp=4 tensor=1" in done.stdout
    )
    told: dict[str, Any] = json.loads((tmp_path / "plan.json").read_text())
    assert told["fits"] and (told["topology"], told["devices"], told["global_batch"]) == ("cpu:8", 8, 64)
    assert told["estimated_seconds"] is None and told["compile_seconds"] > 0
    assert abs(told["xla_flops"] / told["model_flops"] - 1) < 0.1
    kinds = {collective["kind"] for collective in told["collectives"]}
    assert {"all-gather", "all-reduce"} <= kinds
    assert all(
        max(gather["forward"], gather["backward"]) <= 3 for gather in told["gathers"]
    )  # q, k and v apart: three slices
    assert [phase["name"] for phase in told["phases"]] == ["train"]


def test_mistakes_are_one_sentence() -> None:
    done = plan("--config=configs/mae.py:imagenet", "--topology=v5e:4")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "v5e:4 is not known" in done.stderr


@pytest.mark.slow
def test_a_tpu_slice_that_is_not_here(tmp_path: Path) -> None:
    """Two blocks for v5e:2x2 with fsdp=4: it lowers and compiles; float32 sums; parameters go to the examples, once a pass."""
    pytest.importorskip("libtpu")
    done = plan(
        "--config=configs/mae.py:imagenet", "--topology=v5e:2x2", "--config.mesh.fsdp=4", "--config.model.variant=ti",
        "--config.model.depth=2", "--config.method.decoder_depth=1", "--config.model.image_size=64", "--config.data.batch_size=32",
        f"--json={tmp_path}/plan.json", "--loader_rate=100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads((tmp_path / "plan.json").read_text())
    assert told["fits"] and told["estimated_seconds"] > 0 and 0 < told["estimated_mfu"] < 1
    assert abs(told["xla_flops"] / told["model_flops"] - 1) < 0.03
    assert {"decoder", "encoder attention", "encoder MLP", "optimiser", "corruption"} <= told["parts"].keys()
    summed = {c["dtype"] for c in told["collectives"] if c["kind"] in ("all-reduce", "reduce-scatter")}
    assert "bf16" not in summed and "f32" in summed
    often = {g["parameter"] for g in told["gathers"] if max(g["forward"], g["backward"]) > 1}
    assert all("decoder/block_00/attn/qkv" in name or name.startswith(" (") for name in often), often
