"""python -m mim_jax.convert_torch: pickles, torch's own files, and TorchScript archives."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attack import odd
from tests.attack.case import Act, Case, canary, canary_object, convert

AREA = "torch"


def _file(put: Callable[[Path], object], name: str = "w.pth", *more: str) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        put(tmp / name)
        return convert(tmp / name, tmp / "out.safetensors", *more)

    return build


def _saved(make: Callable[[Path], Any], *more: str, **options: Any) -> Callable[[Path], Act]:
    def put(path: Path) -> None:
        import torch

        torch.save(make(path.parent), path, **options)

    return _file(put, "w.pth", *more)


def _state(_tmp: Path) -> dict[str, Any]:
    import torch

    return {"a.weight": torch.ones(3, 2), "a.bias": torch.zeros(3)}


class _Global:
    """Pickled as a reference to a name that need not exist."""

    def __init__(self, module: str, name: str, *arguments: Any) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class _Stored:
    """Pickled as a persistent id."""

    def __init__(self, *pid: Any) -> None:
        self.pid = pid


class _Pickler(pickle._Pickler):  # the one in Python can be taught other things
    def persistent_id(self, value: Any) -> Any:
        return value.pid if isinstance(value, _Stored) else None

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, _Global):
            self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
            if value.arguments:
                super().save(value.arguments[0])
                self.write(b"R")
            if len(value.arguments) > 1:
                super().save(value.arguments[1])
                self.write(b"b")
            return
        super().save(value, save_persistent_id)


def archive(
    root: Any, storages: dict[str, bytes], *, method: int = zipfile.ZIP_STORED
) -> Callable[[Path], object]:
    """A TorchScript archive of this pickled object."""

    def put(path: Path) -> None:
        with (path.parent / "pickle").open("wb") as stream:
            _Pickler(stream, 2).dump(root)
        with zipfile.ZipFile(path, "w", method) as made:
            made.writestr("m/data.pkl", (path.parent / "pickle").read_bytes())
            made.writestr("m/constants.pkl", b"\x80\x02).")
            for name, content in storages.items():
                made.writestr(f"m/data/{name}", content)

    return put


def module(**attributes: Any) -> _Global:
    """A TorchScript module of these attributes."""
    return _Global("__torch__.M", "M", (), attributes)


def tensor(
    size: Any, stride: Any, *, values: Any = 4, offset: Any = 0, kind: str = "FloatStorage", key: str = "0"
) -> _Global:
    """A tensor of a storage."""
    stored = _Stored("storage", _Global("torch", kind), key, "cpu", values)
    return _Global("torch._utils", "_rebuild_tensor_v2", (stored, offset, size, stride, False, OrderedDict()))


def _script(root: Any, storages: dict[str, bytes] | None = None, **options: Any) -> Callable[[Path], Act]:
    return _file(archive(root, {"0": bytes(16)} if storages is None else storages, **options), "w.pt")


def _many(depth: int) -> Any:
    """Modules that hold the one below twice: 2**depth names."""
    made = module(weight=tensor((2, 2), (2, 1)))
    for _ in range(depth):
        made = module(a=made, b=made)
    return made


def _shared(path: Path) -> None:
    """The pickle of `_many`, with references: small, and endless when it is unfolded."""
    lines = [b"\x80\x02c__torch__.M\nM\n)R}X\x01\x00\x00\x00wK\x01sbq\x00"]
    for level in range(60):
        at = bytes([level])
        lines.append(
            b"0c__torch__.M\nM\n)R}(X\x01\x00\x00\x00ah"
            + at
            + b"X\x01\x00\x00\x00bh"
            + at
            + b"ubq"
            + bytes([level + 1])
        )
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("m/data.pkl", b"".join(lines) + b".")
        made.writestr("m/constants.pkl", b"\x80\x02).")


PICKLE = b"\x80\x02cos\nmkdir\nX\x06\0\0\0canary\x85R."

CASES = [
    Case(AREA, "a state dict", _saved(_state), accepted=True),
    Case(AREA, "a state dict in an entry", _saved(lambda tmp: {"model": _state(tmp)}), accepted=True),
    Case(AREA, "a TorchScript module", _script(module(weight=tensor((2, 2), (2, 1)))), accepted=True),
    *(Case(AREA, f"the file: {name}", _file(put), "w.pth", seconds=8.0) for name, put in odd.KINDS.items()),
    Case(AREA, "a pickle", _file(lambda path: path.write_bytes(PICKLE)), "w.pth"),
    Case(AREA, "a pickled canary", _file(lambda path: path.write_bytes(canary(path.parent))), "w.pth"),
    Case(AREA, "a canary of protocol 4", _file(lambda path: path.write_bytes(canary(path.parent, 4))), "w.pth"),
    Case(AREA, "a canary saved by torch", _saved(lambda tmp: {"a": canary_object(tmp)}), "w.pth"),
    Case(AREA, "a canary saved in torch's old way", _saved(lambda tmp: {"a": canary_object(tmp)}, _use_new_zipfile_serialization=False), "w.pth"),
    Case(AREA, "a canary in TorchScript", _script(module(weight=_Global("os", "mkdir", ("canary",)))), "os.mkdir"),
    Case(AREA, "builtins.eval in TorchScript", _script(module(weight=_Global("builtins", "eval", ("__import__('os').mkdir('canary')",)))), "builtins.eval"),
    Case(AREA, "a module with a state that is no dict", _script(_Global("__torch__.M", "M", (), "text")), "w.pt"),
    Case(AREA, "empty", _file(lambda path: path.write_bytes(b"")), "w.pth"),
    Case(AREA, "text", _file(lambda path: path.write_bytes(b"hello")), "w.pth"),
    Case(AREA, "cut short", _file(lambda path: [__import__("torch").save(_state(path), path), path.write_bytes(path.read_bytes()[:-300])]), "w.pth"),
    Case(AREA, "another zip archive", _file(lambda path: zipfile.ZipFile(path, "w").close()), "w.pth"),
    Case(AREA, "a number", _saved(lambda tmp: 5), "no weights"),
    Case(AREA, "a list", _saved(lambda tmp: [1, 2]), "no weights"),
    Case(AREA, "an empty dict", _saved(lambda tmp: {}), "no weights"),
    Case(AREA, "an entry that is not there", _saved(_state, "--key=teacher"), "teacher"),
    Case(AREA, "weights under another entry", _saved(lambda tmp: {"student": _state(tmp)}), "student"),
    Case(AREA, "a tensor expanded to 40 GB", _saved(lambda tmp: {"a": __import__("torch").ones(1).expand(10_000_000_000)}), "w.pth"),
    Case(AREA, "only booleans", _saved(lambda tmp: {"a": __import__("torch").ones(3) > 0}), "no weights"),
    Case(AREA, "complex numbers", _saved(lambda tmp: {"a": __import__("torch").ones(3, dtype=__import__("torch").complex64)}), "no weights"),
    Case(AREA, "safetensors already", _file(lambda path: path.write_bytes(b"x"), "w.safetensors"), "already"),
    Case(AREA, "no file", lambda tmp: convert(tmp / "no.pth", tmp / "out.safetensors"), "no.pth"),
    Case(AREA, "no arguments", lambda tmp: convert(), "usage"),
    Case(AREA, "an unknown option", lambda tmp: convert("a", "b", "--kye=x"), "kye"),
    Case(AREA, "a target that is there", lambda tmp: [(tmp / "out.safetensors").write_bytes(b"mine"), _saved(_state)(tmp)][1], "already"),
    Case(AREA, "a target of another ending", lambda tmp: [_saved(_state)(tmp), convert(tmp / "w.pth", tmp / "out.npz")][1], "safetensors"),
    Case(AREA, "a target in no folder", lambda tmp: [_saved(_state)(tmp), convert(tmp / "w.pth", tmp / "no" / "out.safetensors")][1], "out.safetensors"),
    Case(AREA, "a stride of 0 over 40 GB", _script(module(weight=tensor((10_000_000_000,), (0,)))), "w.pt"),
    Case(AREA, "two strides of 0", _script(module(weight=tensor((100_000, 100_000), (0, 0)))), "w.pt"),
    Case(AREA, "rows that overlap", _script(module(weight=tensor((30_000, 30_000), (1, 1), values=60_000)), {"0": bytes(240_000)}), "w.pt"),
    Case(AREA, "many tensors of one storage", _script(module(**{f"w{number}": tensor((1000, 1000), (1000, 1), values=1_000_000) for number in range(3000)}), {"0": bytes(4_000_000)}), "w.pt"),
    Case(AREA, "a storage shorter than it claims", _script(module(weight=tensor((2, 2), (2, 1))), {"0": bytes(8)}), "w.pt"),
    Case(AREA, "a storage of 10**12 values", _script(module(weight=tensor((2, 2), (2, 1), values=10**12))), "w.pt"),
    Case(AREA, "a negative storage", _script(module(weight=tensor((2, 2), (2, 1), values=-4))), "w.pt"),
    Case(AREA, "no storage", _script(module(weight=tensor((2, 2), (2, 1))), {}), "w.pt"),
    Case(AREA, "a storage above the archive", _script(module(weight=tensor((2, 2), (2, 1), key="../../../etc/passwd"))), "w.pt"),
    Case(AREA, "a negative offset", _script(module(weight=tensor((2, 2), (2, 1), offset=-1))), "w.pt"),
    Case(AREA, "a negative stride", _script(module(weight=tensor((2, 2), (-2, 1)))), "w.pt"),
    Case(AREA, "a tensor outside its storage", _script(module(weight=tensor((9, 9), (9, 1)))), "w.pt"),
    Case(AREA, "a size of texts", _script(module(weight=tensor(("a",), (1,)))), "w.pt"),
    Case(AREA, "more strides than sizes", _script(module(weight=tensor((2,), (1, 1)))), "w.pt"),
    Case(AREA, "a storage of an unknown type", _script(module(weight=tensor((2, 2), (2, 1), kind="QuantStorage"))), "QuantStorage"),
    Case(AREA, "modules in modules without end", _file(_shared, "w.pt"), "w.pt"),
    Case(AREA, "a compressed storage of 8 GB", _script(module(weight=tensor((2_000_000_000,), (1,), values=2_000_000_000)), {"0": bytes(64 << 20)}, method=zipfile.ZIP_DEFLATED), "w.pt"),
    Case(AREA, "an archive of garbage", _file(lambda path: [zipfile.ZipFile(path, "w").writestr("m/constants.pkl", b"x"), path][1], "w.pt"), "w.pt"),
]  # fmt: skip
