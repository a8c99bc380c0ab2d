"""Images and labels in an .npz file, as the source of a run."""

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.attack import odd
from tests.attack.case import Act, Case, canary_object, train

AREA = "arrays"
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
LABELS = np.arange(40) % 4


def _trains(file: Path | str, tmp: Path) -> Act:
    return train(tmp / "run", f"data.source=arrays:{file}", "model.image_size=8", "model.patch=2")


def _file(put: Callable[[Path], object]) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        put(tmp / "data.npz")
        return _trains(tmp / "data.npz", tmp)

    return build


def _arrays(**arrays: object) -> Callable[[Path], Act]:
    return _file(lambda path: np.savez(path, **arrays))  # type: ignore[arg-type]


def _labels(labels: object) -> Callable[[Path], Act]:
    return _arrays(images=IMAGES, labels=np.asarray(labels))


def npy(array: object, *, pickled: bool = False) -> bytes:
    """The bytes of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, np.asarray(array, object if pickled else None), allow_pickle=pickled)
    return stream.getvalue()


def head(descr: str, shape: str, body: bytes = b"") -> bytes:
    """An .npy file that claims a type and a shape."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def _members(method: int = zipfile.ZIP_STORED, **members: bytes) -> Callable[[Path], object]:
    def put(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in members.items():
                archive.writestr(name.replace("__", "."), content)

    return put


def _patched(
    change: Callable[[bytearray], object], method: int = zipfile.ZIP_DEFLATED
) -> Callable[[Path], Act]:
    """Bytes of a good archive, changed."""

    def put(path: Path) -> None:
        _members(method, images__npy=npy(IMAGES), labels__npy=npy(LABELS))(path)
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)

    return _file(put)


def _encrypted(content: bytearray) -> None:
    """Sets the flag of encryption in every header."""
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + place] |= 1
            at = content.find(mark, at + 1)


def _corrupt(content: bytearray) -> None:
    content[60:4000] = bytes(3940)


def _unknown_method(content: bytearray) -> None:
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.find(mark)
        while at >= 0:
            content[at + place : at + place + 2] = struct.pack("<H", 99)
            at = content.find(mark, at + 1)


def _twice(path: Path) -> None:
    """Two members of one name."""
    _members(images__npy=npy(IMAGES))(path)
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images.npy", npy(IMAGES[:2]))


CASES = [
    Case(AREA, "good", _labels(LABELS), accepted=True),
    Case(AREA, "without labels", _arrays(images=IMAGES), accepted=True),
    Case(AREA, "labels of uint64", _labels(LABELS.astype(np.uint64)), accepted=True),
    Case(AREA, "labels -1", _labels(LABELS - 1), accepted=True),
    *(Case(AREA, f"the file: {name}", _file(put), "data.npz", seconds=8.0) for name, put in odd.KINDS.items()),
    Case(AREA, "no file", lambda tmp: _trains(tmp / "no.npz", tmp), "no.npz"),
    Case(AREA, "no path", lambda tmp: _trains("", tmp)),
    Case(AREA, "empty", _file(lambda path: path.write_bytes(b"")), "data.npz"),
    Case(AREA, "one array, no archive", _file(lambda path: path.write_bytes(npy(IMAGES))), "data.npz"),
    Case(AREA, "a pickle", _file(lambda path: path.write_bytes(b"\x80\x02cos\nmkdir\nX\x06\0\0\0canary\x85R.")), "data.npz"),
    Case(AREA, "images that are a pickle", _file(lambda path: _members(images__npy=npy([canary_object(path.parent)], pickled=True))(path)), "data.npz"),
    Case(AREA, "labels that are a pickle", _file(lambda path: _members(images__npy=npy(IMAGES), labels__npy=npy([canary_object(path.parent)] * 40, pickled=True))(path)), "labels"),
    Case(AREA, "class names that are a pickle", _file(lambda path: _members(images__npy=npy(IMAGES), labels__npy=npy(LABELS), class_names__npy=npy([canary_object(path.parent)] * 4, pickled=True))(path)), "class_names"),
    Case(AREA, "an empty archive", _file(_members()), "data.npz"),
    Case(AREA, "images that are no npy", _file(_members(images=b"hello")), "images"),
    Case(AREA, "images.npy that is no npy", _file(_members(images__npy=b"hello")), "images"),
    Case(AREA, "images.npy that is empty", _file(_members(images__npy=b"")), "images"),
    Case(AREA, "images whose head is a program", _file(_members(images__npy=head("'|u1'", "__import__('os').mkdir('canary')"))), "images"),
    Case(AREA, "images that claim 10**12", _file(_members(images__npy=head("'|u1'", "(1000000000000, 8, 8, 3)", bytes(99)))), "images"),
    Case(AREA, "images that claim 10**30", _file(_members(images__npy=head("'|u1'", f"({10**30}, 8, 8, 3)", bytes(99)))), "images"),
    Case(AREA, "images that claim 60 GB", _file(_members(images__npy=head("'|u1'", "(300000000, 8, 8, 3)", bytes(99)))), "images"),
    Case(AREA, "images that claim a negative number", _file(_members(images__npy=head("'|u1'", "(-5, 8, 8, 3)", bytes(99)))), "images"),
    Case(AREA, "images that claim fewer than they are", _file(_members(images__npy=head("'|u1'", "(4, 8, 8, 3)", bytes(192)))), "images"),
    Case(AREA, "images of an unknown type", _file(_members(images__npy=head("'|z9'", "(4, 8, 8, 3)", bytes(999)))), "images"),
    Case(AREA, "images of records", _arrays(images=np.zeros(40, [("a", "u1"), ("b", "f4")])), "images"),
    Case(AREA, "images of a shape of 40 axes", _file(_members(images__npy=head("'|u1'", "(" + "1, " * 40 + ")", b"1"))), "images"),
    Case(AREA, "an archive cut short", _patched(lambda content: content.__delitem__(slice(len(content) // 2, None))), "data.npz"),
    Case(AREA, "an archive of corrupt deflate", _patched(_corrupt), "images"),
    Case(AREA, "an encrypted archive", _patched(_encrypted), "data.npz"),
    Case(AREA, "an archive of an unknown method", _patched(_unknown_method), "data.npz"),
    Case(AREA, "two members of one name", _file(_twice), "data.npz"),
    Case(AREA, "images of floats", _arrays(images=IMAGES / 255.0), "float64"),
    Case(AREA, "images of int64", _arrays(images=IMAGES.astype(np.int64)), "int64"),
    Case(AREA, "images of booleans", _arrays(images=IMAGES > 9), "bool"),
    Case(AREA, "images of two channels", _arrays(images=IMAGES[..., :2]), "images"),
    Case(AREA, "images of one dimension", _arrays(images=IMAGES.ravel()), "images"),
    Case(AREA, "no images", _arrays(images=IMAGES[:0]), "images"),
    Case(AREA, "images of no pixels", _arrays(images=IMAGES[:, :0]), "images"),
    Case(AREA, "one image", _arrays(images=IMAGES[:1]), "one image"),
    Case(AREA, "other names", _arrays(pictures=IMAGES), "pictures"),
    Case(AREA, "train without test", _arrays(x_train=IMAGES), "test"),
    Case(AREA, "fewer labels", _labels(LABELS[:-1]), "labels"),
    Case(AREA, "labels of floats", _labels(LABELS / 1.0), "labels"),
    Case(AREA, "labels of booleans", _labels(LABELS > 1), "labels"),
    Case(AREA, "labels of texts", _labels(["a"] * 40), "labels"),
    Case(AREA, "labels of two dimensions", _labels(np.stack([LABELS] * 2, 1)), "labels"),
    Case(AREA, "a label of -2", _labels([*LABELS[:-1], -2]), "labels"),
    Case(AREA, "a label near 2**32", _labels([*LABELS[:-1], 2**32 - 2]), "labels"),
    Case(AREA, "a label of 2**31 - 2", _labels([*LABELS[:-1], 2**31 - 2]), "labels"),
    Case(AREA, "a label of 2**64 - 1", _labels(np.array([*LABELS[:-1], 2**64 - 1], np.uint64)), "labels"),
    Case(AREA, "a label of 2**63", _labels(np.array([*LABELS[:-1], 2**63], np.uint64)), "labels"),
    Case(AREA, "fewer class names than labels", _arrays(images=IMAGES, labels=LABELS, class_names=np.array(["a"])), "class_names"),
    Case(AREA, "class names of numbers", _arrays(images=IMAGES, labels=LABELS, class_names=np.arange(4)), "class_names"),
    Case(AREA, "class names of two dimensions", _arrays(images=IMAGES, labels=LABELS, class_names=np.full((4, 2), "a")), "class_names"),
    Case(AREA, "a class name of a megabyte", _arrays(images=IMAGES, labels=LABELS, class_names=np.array(["a" * 1_000_000, "b", "c", "d"])), "class_names"),
    Case(AREA, "equal class names", _arrays(images=IMAGES, labels=LABELS, class_names=np.array(["a", "a", "b", "c"])), "class_names"),
]  # fmt: skip
