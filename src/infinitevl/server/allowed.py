"""Which videos and pictures may be opened for a client, and opening them without a way around that.

FFmpeg would follow redirects, and open whatever a playlist names. So it is given bytes that are fetched here, formats
that name no other place, and, of RTSP, a connection to the address that was checked.
"""

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from infinitevl.errors import InfiniteVLError, VideoError
from infinitevl.server.faults import NotAllowed
from infinitevl.server.fetching import fetched
from infinitevl.server.pulling import Opened
from infinitevl.server.relay import Relay
from infinitevl.video.sources import open_video

PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}
CLEAN = re.compile(r"[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+")  # no parser disagrees about these
TRANSLATED = ip_network("64:ff9b::/96")  # IPv4 in IPv6: global by itself, whatever it leads to


@dataclass(frozen=True)
class Place:
    """An entry of the list: a scheme, and a host where it names one, with what begins its paths."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, entry: str) -> "Place":
        parts = split(entry)
        return cls(parts.scheme, parts.hostname or "", _port(parts), unquote(parts.path))

    def holds(self, parts: SplitResult) -> bool:
        if parts.scheme != self.scheme or not self.host:
            return parts.scheme == self.scheme
        path, begin = unquote(parts.path), self.path.rstrip("/")
        same = (parts.hostname, _port(parts)) == (self.host, self.port)
        return same and (path == begin or path.startswith(f"{begin}/"))


@dataclass(frozen=True)
class Address:
    """An address that may be opened. named: its host is on the list by name, so it may be of the server's network."""

    parts: SplitResult
    named: bool

    @property
    def live(self) -> bool:
        return self.parts.scheme.startswith("rtsp")

    @property
    def host(self) -> str:
        return self.parts.hostname or ""

    @property
    def port(self) -> int:
        return _port(self.parts)

    @property
    def shown(self) -> str:
        """Without a password."""
        return self.parts._replace(netloc=self.parts.netloc.rpartition("@")[2]).geturl()


class Allowed:
    """The list of `--allow-source`. Raises InfiniteVLError for an entry that is neither a folder nor an address."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._places = [Place.parse(entry) for entry in entries if "://" in entry]
        self._folders = [_folder(entry) for entry in entries if "://" not in entry]

    def find(self, url: str) -> Address | Path:
        """Where this leads to. Looks at names only, not at the network. Raises NotAllowed, InfiniteVLError."""
        return self._address(url) if "://" in url else self._file(url)

    @contextmanager
    def opened(self, url: str, *, fps: float | None, timeout: float) -> Iterator[Opened]:
        """Open it. Raises NotAllowed, VideoError."""
        found = self.find(url)
        with ExitStack() as stack:
            if isinstance(found, Path):
                opened = stack.enter_context(opened_file(found, url, fps))
            elif found.live:
                relay = stack.enter_context(Relay(found, reach(found), timeout))
                options = {"fps": fps, "live": True, "timeout": timeout}
                opened = stack.enter_context(_opened(relay.url, relay.name, found.shown, **options))
            else:
                body = stack.enter_context(fetched(found, self._address, reach, timeout))
                options = {"fps": fps, "live": body.length is None, "timeout": timeout}
                opened = stack.enter_context(_opened(body, str(body), found.shown, **options))
            yield opened

    def _address(self, url: str) -> Address:
        parts = split(url)
        holding = [place for place in self._places if place.holds(parts)]
        if not holding or not parts.hostname:
            raise NotAllowed(REFUSED)
        return Address(parts, named=any(place.host for place in holding))

    def _file(self, name: str) -> Path:
        """A file right in, or below, one of the folders: no other way leads to it."""
        for folder in self._folders:
            path = _resolved(folder, name)
            if path and path.is_relative_to(folder) and path.is_file():
                return path
        raise NotAllowed(REFUSED)


REFUSED = "it is not among the sources that this server opens (--allow-source)"


def split(url: str) -> SplitResult:
    """The parts of an address that every parser reads in the same way. Raises InfiniteVLError for others."""
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
        clean = CLEAN.fullmatch(url) and parts.netloc.count("@") < 2 and _port(parts) > 0
    except ValueError:
        clean = False
    if not clean or scheme not in PORTS:
        raise InfiniteVLError("a source is an http, https or rtsp address, or the name of a file")
    if {".", ".."} & set(unquote(parts.path).split("/")):
        raise InfiniteVLError("the path of a source has no . and .. in it")
    return parts


def reach(address: Address) -> str:
    """The IP address to connect to. Raises NotAllowed for the server's own network, where its name is not on the list,
    and VideoError for a name that is not known."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise VideoError(f"{address.host}: {error.strerror or 'not a known name'}") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not address.named and not all(is_public(each) for each in addresses):
        raise NotAllowed(f"{address.host} is an address of the server's own network")
    return addresses[0]


def is_public(address: str) -> bool:
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        if found in TRANSLATED or found.sixtofour or found.teredo:
            return False
        found = found.ipv4_mapped or found
    return found.is_global and not found.is_multicast


@contextmanager
def opened_file(path: Path, shown: str, fps: float | None) -> Iterator[Opened]:
    """A file of this machine, called `shown` in what is told of it."""
    with _opened(path, str(path), shown, fps=fps, live=False) as opened:
        yield opened


@contextmanager
def _opened(source: Any, hidden: str, shown: str, **options: Any) -> Iterator[Opened]:
    try:
        with open_video(source, untrusted=True, **options) as video:
            yield Opened(video, options["live"], hidden, shown)
    except VideoError as error:
        raise VideoError(str(error).replace(hidden, shown)) from None


def _port(parts: SplitResult) -> int:
    return PORTS.get(parts.scheme, 0) if parts.port is None else parts.port


def _folder(entry: str) -> Path:
    path = Path(entry).expanduser().resolve()
    if not path.is_dir():
        raise InfiniteVLError(f"--allow-source {entry}: neither an address nor a folder")
    return path


def _resolved(folder: Path, name: str) -> Path | None:
    try:
        return (folder / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there, NUL in it, links in a circle
        return None
