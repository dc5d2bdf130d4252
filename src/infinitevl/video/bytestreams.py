"""Streams of bytes that cannot seek, and the one kind of file that cannot be read without seeking."""

import errno
import tempfile
import urllib.request
from typing import IO, Any

HEAD_BYTES = 4096
PIECE = 1 << 20


class Pipe:
    """A binary stream that cannot seek, whose first bytes can be looked at in `head`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._read = getattr(file, "read1", file.read)  # read1 gives what is there, not waiting for more
        self.head = b""
        while len(self.head) < HEAD_BYTES and (more := self._read(HEAD_BYTES - len(self.head))):
            self.head += more
        self._again = self.head

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, the head first; none at the end."""
        again, self._again = self._again[:size], self._again[size:]
        return again or self._read(size)


def index_is_last(head: bytes) -> bool:
    """Whether `head` begins an mp4 whose index (the moov box) comes after its data, so must be read whole."""
    at = 0
    while at + 8 <= len(head):
        size, kind = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        if kind in (b"mdat", b"moov") or size < 8:
            return kind == b"mdat"
        at += size
    return False


def spooled(stream: Any, most: int | None = None) -> IO[bytes]:
    """All of a stream in a temporary file, which can seek. OSError where it is more than `most` bytes."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115
    while piece := stream.read(PIECE):
        spool.write(piece)
        if most is not None and spool.tell() > most:
            raise OSError(errno.EFBIG, f"larger than {most} bytes, with its index at the end")
    spool.seek(0)
    return spool


def downloaded(address: str, timeout: float) -> IO[bytes]:
    """The body of an http(s) address in a temporary file. OSError or HTTPException where it does not come."""
    with urllib.request.urlopen(address, timeout=timeout) as body:
        return spooled(body)
