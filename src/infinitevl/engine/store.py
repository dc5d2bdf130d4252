"""Where streams and snapshots lie when no engine holds them: files in a folder, local or of any fsspec file system."""

import json
import os
import re
import struct
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsspec.core import url_to_fs

from infinitevl.errors import InfiniteVLError, NotFound, StorageError
from infinitevl.model.state import State
from infinitevl.streaming.session import Session

Kind = Literal["streams", "snapshots"]
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
SUFFIX, CLAIM = ".safetensors", ".holder"
PIECE = 1 << 20  # bytes
MAX_HEADER = 1 << 24  # bytes


@dataclass(frozen=True)
class Stored:
    """A file of the store. session: where the stream stood; about: what was kept with it; at: Unix time of writing."""

    name: str
    session: Session
    about: dict[str, Any]
    bytes: int
    at: float

    @property
    def frames(self) -> int:
        return self.session.stats.frames


class Store:
    """KIND/NAME.safetensors under a folder, in the form of `Stream.save`. Files are whole or not there.

    folder: a path, or an address that fsspec knows, such as s3://bucket/streams. Methods raise StorageError, or
    NotFound.
    """

    def __init__(self, folder: str) -> None:
        try:
            self._files, self._root = url_to_fs(folder)
        except (ValueError, ImportError) as error:  # a protocol that nobody knows, or whose package is missing
            raise StorageError(f"{folder}: {error}") from None
        with _told(folder):
            for kind in ("streams", "snapshots"):
                self._files.makedirs(f"{self._root}/{kind}", exist_ok=True)
        self.folder = folder

    def put(self, kind: Kind, name: str, state: State, session: Session, about: dict[str, Any]) -> None:
        """Write a state of one row, in place of what the name held."""
        extra = {"stream": session.dumps(), "about": json.dumps(about)}
        path = self._path(kind, name)
        with _told(f"{self.folder}/{kind}/{name}"), tempfile.TemporaryDirectory() as scratch:
            partial = f"{path}.{uuid.uuid4().hex}.partial"
            try:
                if self._local:
                    state.save(partial, extra)
                else:
                    state.save(f"{scratch}/state", extra)
                    self._files.put_file(f"{scratch}/state", partial)
                self._files.mv(partial, path)
            finally:
                if self._files.exists(partial):
                    self._files.rm_file(partial)

    def get(self, kind: Kind, name: str, state: State) -> tuple[Session, dict[str, Any]]:
        """Read into a state of one row. StorageError where the file is damaged, or of another model."""
        path = self._path(kind, name)
        with _told(f"{kind[:-1]} {name}"), tempfile.TemporaryDirectory() as scratch:
            if not self._files.exists(path):
                raise NotFound(f"there is no {kind[:-1]} {name}")
            if not self._local:
                self._files.get_file(path, f"{scratch}/state")
                path = f"{scratch}/state"
            return _parsed(state.load(path))

    def look(self, kind: Kind, name: str) -> Stored:
        """What a file says of itself, without its tensors. StorageError where it is damaged."""
        path = self._path(kind, name)
        with _told(f"{kind[:-1]} {name}"):
            if not self._files.exists(path):
                raise NotFound(f"there is no {kind[:-1]} {name}")
            with self._files.open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > MAX_HEADER:
                    raise ValueError("damaged")
                extra = json.loads(file.read(length))["__metadata__"]
            session, about = _parsed(extra)
            written = self._files.modified(path).timestamp()
            return Stored(name, session, about, self._files.size(path) or 0, written)

    def claim(self, name: str, holder: str) -> None:
        """Tell all that share the store who holds a stream from now on."""
        path = self._path("streams", name).removesuffix(SUFFIX) + CLAIM
        with _told(f"stream {name}"):
            self._files.pipe_file(f"{path}.{holder}.partial", holder.encode())
            self._files.mv(f"{path}.{holder}.partial", path)

    def holder(self, name: str) -> str | None:
        """Who claimed a stream last."""
        path = self._path("streams", name).removesuffix(SUFFIX) + CLAIM
        with _told(f"stream {name}"):
            self._files.invalidate_cache()
            return self._files.cat_file(path).decode() if self._files.exists(path) else None

    def names(self, kind: Kind) -> list[str]:
        """All that are there, whole or damaged."""
        with _told(f"{self.folder}/{kind}"):
            self._files.invalidate_cache()
            paths = self._files.ls(f"{self._root}/{kind}", detail=False)
        names = [Path(path).name for path in paths]
        return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))

    def holds(self, kind: Kind, name: str) -> bool:
        with _told(f"{kind[:-1]} {name}"):
            return self._files.exists(self._path(kind, name))

    def read(self, kind: Kind, name: str) -> Iterator[bytes]:
        """The file's bytes, piece by piece. Opened by this call."""
        path = self._path(kind, name)
        if not self.holds(kind, name):
            raise NotFound(f"there is no {kind[:-1]} {name}")
        with _told(f"{kind[:-1]} {name}"):
            file = self._files.open(path, "rb")
        return _pieces(file)

    def delete(self, kind: Kind, name: str) -> None:
        """Nothing happens where there is none."""
        with _told(f"{kind[:-1]} {name}"):
            path = self._path(kind, name)
            for file in (path, path.removesuffix(SUFFIX) + CLAIM):
                if self._files.exists(file):
                    self._files.rm_file(file)

    @property
    def _local(self) -> bool:
        return "file" in self._files.protocol

    def _path(self, kind: Kind, name: str) -> str:
        if not NAME.fullmatch(name):
            raise NotFound(f"there is no {kind[:-1]} of such a name: letters, digits, - _ and . make one")
        return os.path.join(self._root, kind, f"{name}{SUFFIX}")


def _parsed(extra: dict[str, str]) -> tuple[Session, dict[str, Any]]:
    about = json.loads(extra.get("about", "{}"))
    if not isinstance(about, dict):
        raise ValueError("damaged")
    return Session.loads(extra["stream"]), about


def _pieces(file: Any) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever a file system or a damaged file raises, as one line."""
    try:
        yield
    except (NotFound, StorageError):
        raise
    except (InfiniteVLError, OSError) as error:
        raise StorageError(f"{what}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise StorageError(f"{what}: damaged, or not a stream ({type(error).__name__})") from None
