"""PyTorch files to safetensors: what is kept, and that nothing in a file is ever run."""

import argparse
import os
import pickle
import subprocess
import sys
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mim_jax.interop.files import read_weights
from mim_jax.tasks.convert_torch import run
from tests.conftest import ROOT
from tests.oracles import oracle


@pytest.fixture
def torch():
    return oracle("torch")


def converted(
    tmp_path: Path, capsys, *options: str, source: str = "in.pt"
) -> tuple[dict[str, np.ndarray], str]:
    out = tmp_path / "out.safetensors"
    assert run([str(tmp_path / source), str(out), *options]) == 0
    return read_weights(out), capsys.readouterr().out


def refused(tmp_path: Path, capsys, *options: str, source: str = "in.pt") -> str:
    """The one sentence on stderr; nothing was written."""
    out = tmp_path / "out.safetensors"
    assert run([str(tmp_path / source), str(out), *options]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("mim_jax: ") and said.err.count("\n") == 1 and not said.out
    assert not out.exists()
    return said.err


def state(torch) -> dict:
    return {"a.weight": torch.randn(3, 2), "b": torch.randn(4).half(), "n": torch.tensor(5)}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_plain_state_dict(tmp_path: Path, capsys, torch, legacy: bool) -> None:
    saved = state(torch)
    torch.save(saved, tmp_path / "in.pt", _use_new_zipfile_serialization=not legacy)
    flat, said = converted(tmp_path, capsys)
    assert {name: value.dtype.name for name, value in flat.items()} == {
        "a.weight": "float32", "b": "float16", "n": "int64"
    }  # fmt: skip
    for name, value in saved.items():
        np.testing.assert_array_equal(flat[name], value.numpy())
    assert flat["n"].shape == () and "3 tensors, 11 values (float16, float32, int64)" in said


@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_usual_keys_prefix_and_what_lies_beside(tmp_path: Path, capsys, torch, key: str) -> None:
    saved = {f"module.{name}": value for name, value in state(torch).items()}
    beside = {
        "args": argparse.Namespace(lr=1e-3),
        "epoch": 3,
        "best": np.float64(0.5),
        "optimizer": {"state": {}},
    }
    torch.save({key: {**saved, "module.version": 2}, **beside}, tmp_path / "in.pt", pickle_protocol=2)
    flat, said = converted(tmp_path, capsys)
    assert set(flat) == {"a.weight", "b", "n"}
    assert f"from its entry '{key}'" in said and "1 entries that are no numbers were left out" in said


def test_a_key_of_its_own(tmp_path: Path, capsys, torch) -> None:
    torch.save({"student": state(torch), "teacher": {"x": torch.ones(2)}}, tmp_path / "in.pt")
    assert "has weights in student, teacher: name one with --key" in refused(tmp_path, capsys)
    assert "and not in 'ema'" in refused(tmp_path, capsys, "--key=ema")
    flat, _ = converted(tmp_path, capsys, "--key=teacher")
    assert set(flat) == {"x"}


def test_bfloat16_and_shared_and_strided_tensors(tmp_path: Path, capsys, torch) -> None:
    matrix = torch.randn(3, 2)
    tensors = {
        "bf": torch.tensor([1.0, 0.3333]).bfloat16(),
        "view": matrix.t(),
        "same": matrix,
        "flag": torch.ones(2) > 0,
    }
    torch.save(tensors, tmp_path / "in.pt")
    flat, _ = converted(tmp_path, capsys)
    assert flat["bf"].dtype == np.float32 and set(flat) == {"bf", "view", "same"}
    np.testing.assert_array_equal(flat["bf"], np.array([1.0, 0.33398438], np.float32))
    np.testing.assert_array_equal(flat["view"], matrix.numpy().T)


def scripted(torch, network, path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # deprecated, but what OpenAI's files are
        torch.jit.save(torch.jit.script(network), path)


def test_torchscript_as_openais_clip(tmp_path: Path, capsys, torch) -> None:
    """All that torch's own reader finds, without torch."""
    inner = torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1), torch.nn.ReLU())
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), inner)
    network[1].weight = torch.nn.Parameter(torch.randn(8)[2:6])  # a part of its storage
    scripted(torch, network.half(), tmp_path / "in.pt")
    flat, said = converted(tmp_path, capsys)
    with warnings.catch_warnings(action="ignore"):
        expected = torch.jit.load(tmp_path / "in.pt").state_dict()
    assert set(flat) == set(expected) and flat["0.weight"].dtype == np.float16
    for name, value in expected.items():
        np.testing.assert_array_equal(flat[name], value.numpy())
    assert "float16, int64" in said and "left out" not in said


def test_torchscript_runs_nothing(tmp_path: Path, capsys, torch, monkeypatch) -> None:
    """torch.jit.load runs __setstate__, in which TorchScript may write a file."""
    monkeypatch.chdir(tmp_path)

    class Evil(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        @torch.jit.export
        def __getstate__(self):
            return self.weight

        @torch.jit.export
        def __setstate__(self, state: torch.Tensor) -> None:
            self.weight = state
            torch.save(state, "ran")

        def forward(self, x):
            return x

    scripted(torch, Evil(), tmp_path / "in.pt")
    assert "set up by code of its own, which is not run" in refused(tmp_path, capsys)
    assert not Path("ran").exists()


def test_damaged_torchscript(tmp_path: Path, capsys, torch) -> None:
    scripted(torch, torch.nn.Linear(2, 3), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data = next(name for name in parts if name.endswith("data.pkl"))
    weight = next(name for name in parts if name.endswith("data/0"))
    foreign = pickle.dumps(Runs(tmp_path / "ran"), protocol=2)
    for name, content, said in (
        (data, parts[data][: len(parts[data]) // 2], "damaged TorchScript archive"),
        (weight, parts[weight][:8], "claims 6 values in a storage that has 2"),
        (data, foreign, "wants to create posix.mkdir while it is read"),
    ):
        with zipfile.ZipFile(tmp_path / "in.pt", "w") as archive:
            for part, own in parts.items():
                archive.writestr(part, content if part == name else own)
        assert said in refused(tmp_path, capsys)
    assert not (tmp_path / "ran").exists()


class Runs:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
def test_a_file_that_wants_to_run_code_does_not(tmp_path: Path, capsys, torch, how: str) -> None:
    evil = {"model": state(torch), "extra": Runs(tmp_path / "ran")}
    if how == "plain pickle":
        (tmp_path / "in.pt").write_bytes(pickle.dumps(Runs(tmp_path / "ran"), protocol=2))
    else:
        torch.save(evil, tmp_path / "in.pt", _use_new_zipfile_serialization=how == "zip")
    assert "wants to create posix.mkdir" in refused(tmp_path, capsys)
    assert not (tmp_path / "ran").exists()


def test_openais_dalle_is_refused_with_a_way_out(tmp_path: Path, capsys, torch, monkeypatch) -> None:
    module = types.ModuleType("dall_e.encoder")
    encoder = type("Encoder", (torch.nn.Linear,), {"__module__": "dall_e.encoder"})
    module.Encoder = encoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))
    monkeypatch.setitem(sys.modules, "dall_e.encoder", module)
    torch.save(encoder(2, 3), tmp_path / "encoder.pkl")
    said = refused(tmp_path, capsys, source="encoder.pkl")
    assert "pickled module" in said and "facebook/flava-image-codebook" in said


def test_damaged_and_empty_files(tmp_path: Path, capsys, torch) -> None:
    torch.save(state(torch), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for content in (b"", b"hello world", whole[: len(whole) // 2]):
        (tmp_path / "in.pt").write_bytes(content)
        assert "damaged, or no PyTorch file" in refused(tmp_path, capsys)
    torch.save({"flag": torch.ones(2) > 0}, tmp_path / "in.pt")
    assert "holds no weights (none of its 1 entries" in refused(tmp_path, capsys)
    torch.save({"epoch": 3}, tmp_path / "in.pt")
    assert "holds no weights (a dict without tensors)" in refused(tmp_path, capsys)
    torch.save(torch.ones(2), tmp_path / "in.pt")
    assert "holds no weights (a Tensor without tensors)" in refused(tmp_path, capsys)


def test_nothing_is_overwritten(tmp_path: Path, capsys, torch) -> None:
    torch.save(state(torch), tmp_path / "in.pt")
    converted(tmp_path, capsys)
    assert run([str(tmp_path / "in.pt"), str(tmp_path / "out.safetensors")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert run([str(tmp_path / "out.safetensors"), str(tmp_path / "more.safetensors")]) == 2
    assert "is safetensors already" in capsys.readouterr().err


def test_without_torch(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "in.pt").write_bytes(b"")
    assert "needs torch, which is not installed: pip install torch" in refused(tmp_path, capsys)


def test_an_old_torch_is_refused(tmp_path: Path, capsys, monkeypatch) -> None:
    old = types.ModuleType("torch")
    old.__version__ = "2.5.1+cpu"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", old)
    (tmp_path / "in.pt").write_bytes(b"")
    assert "torch 2.5.1+cpu cannot read files safely: install torch 2.6" in refused(tmp_path, capsys)


def test_the_command_itself() -> None:
    command = [sys.executable, "-m", "mim_jax.convert_torch", "only_one"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "OUT.safetensors" in done.stderr and "python -m mim_jax.convert_torch IN" in done.stderr
