"""A bucket of Google Cloud Storage in this process, for tests: `gs://` of etils.epath (by fsspec) and of tensorstore (by HTTP).

Like the real thing it knows objects and nothing else: a directory is there while an object's name begins with its own, nothing can be
renamed or appended to, and an object is there whole or not at all.
"""

import io
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec
from etils.epath import backend

OBJECTS: dict[str, tuple[bytes, int]] = {}
"""BUCKET/NAME -> content and generation."""
_LOCK = threading.Lock()


def put(name: str, content: bytes) -> int:
    """Stores an object; its generation."""
    with _LOCK:
        generation = max((number for _, number in OBJECTS.values()), default=0) + 1
        OBJECTS[name] = (content, generation)
        return generation


class _Upload(io.BytesIO):
    """What is written becomes an object when it is closed."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def close(self) -> None:
        if not self.closed:
            put(self._name, self.getvalue())
        super().close()


class BucketFileSystem(fsspec.AbstractFileSystem):
    """What gcsfs does, as far as etils.epath asks for it."""

    protocol = ("gcs", "gs")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        text = os.fspath(path)
        return text.partition("://")[2].strip("/") if "://" in text else text.strip("/")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        found: dict[str, dict[str, Any]] = {}
        for name, (content, _generation) in list(OBJECTS.items()):
            if name == path:
                found[name] = {"name": name, "size": len(content), "type": "file"}
            elif name.startswith(f"{path}/"):
                below = f"{path}/{name[len(path) + 1 :].partition('/')[0]}"
                kind = "file" if below == name else "directory"
                found[below] = {"name": below, "size": len(content) if kind == "file" else 0, "type": kind}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in OBJECTS:
            return {"name": path, "size": len(OBJECTS[path][0]), "type": "file"}
        self.ls(path)
        return {"name": path, "size": 0, "type": "directory"}

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """There are no directories."""

    makedirs = mkdir

    def rm(self, path: str, recursive: bool = False, **_: Any) -> None:
        path = self._strip_protocol(path)
        below = [name for name in OBJECTS if recursive and name.startswith(f"{path}/")]
        if not below or path in OBJECTS:
            self.rm_file(path)
        for name in below:
            self.rm_file(name)

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path)
        with _LOCK:
            if OBJECTS.pop(path, None) is None:
                raise FileNotFoundError(path)

    def rmdir(self, path: str) -> None:
        """There are no directories."""

    def mv(self, *_: Any, **__: Any) -> None:
        raise AssertionError("an object store has no renames")

    rename = move = mv

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        path = self._strip_protocol(path)
        if mode == "wb":
            return _Upload(path)
        if mode != "rb":
            raise AssertionError(f"an object cannot be opened with mode {mode!r}")
        if path not in OBJECTS:
            raise FileNotFoundError(path)
        return io.BytesIO(OBJECTS[path][0])


class _Handler(BaseHTTPRequestHandler):
    """The part of the JSON API that tensorstore uses."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        bucket, name, query = self._parsed()
        if name is None:
            return self._list(bucket, query)
        stored = OBJECTS.get(f"{bucket}/{name}")
        if stored is None:
            return self._answer(404, b"{}")
        content, generation = stored
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304, b"")
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self._answer(412, b"{}")
        if query.get("alt") != "media":
            return self._answer(200, json.dumps(_about(name, content, generation)).encode())
        return self._ranged(content, {"x-goog-generation": str(generation)})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        bucket, _, query = self._parsed()
        name = query["name"]
        _, generation = OBJECTS.get(f"{bucket}/{name}", (b"", 0))
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self._answer(412, b"{}")
        return self._answer(200, json.dumps(_about(name, content, put(f"{bucket}/{name}", content))).encode())

    def do_DELETE(self) -> None:
        bucket, name, _ = self._parsed()
        with _LOCK:
            there = OBJECTS.pop(f"{bucket}/{name}", None)
        self._answer(204 if there else 404, b"")

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def _parsed(self) -> tuple[str, str | None, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        bucket, _, rest = url.path.partition("/b/")[2].partition("/o")
        name = urllib.parse.unquote(rest.lstrip("/")) or None
        return bucket, name, dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix = f"{bucket}/{query.get('prefix', '')}"
        items = [
            _about(name[len(bucket) + 1 :], content, generation)
            for name, (content, generation) in sorted(OBJECTS.items())
            if name.startswith(prefix)
        ]
        self._answer(200, json.dumps({"items": items}).encode())

    def _ranged(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = self.headers.get("Range", "")
        if not wanted.startswith("bytes="):
            return self._answer(200, content, headers)
        first, _, last = wanted[len("bytes=") :].partition("-")
        start = int(first) if first else max(0, len(content) - int(last))
        end = int(last) + 1 if first and last else len(content)
        if start >= len(content):
            return self._answer(416, b"")
        part = content[start:end]
        about = {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"}
        return self._answer(206, part, headers | about)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _about(name: str, content: bytes, generation: int) -> dict[str, str]:
    return {
        "name": name,
        "size": str(len(content)),
        "generation": str(generation),
        "timeCreated": time.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "updated": time.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
    }


@contextmanager
def serving() -> Iterator[dict[str, tuple[bytes, int]]]:
    """gs:// leads here; gives the objects. tensorstore reads its address once a process: one server for all tests."""
    fsspec.register_implementation("gcs", BucketFileSystem, clobber=True)
    fsspec.register_implementation("gs", BucketFileSystem, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    try:
        yield OBJECTS
    finally:
        server.shutdown()
        OBJECTS.clear()
