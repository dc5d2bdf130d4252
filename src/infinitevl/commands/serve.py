"""`infinitevl serve`: the model behind HTTP and WebSockets, until a signal ends it."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from infinitevl.commands.console import boxed_model, load_model, make_folder
from infinitevl.errors import InfiniteVLError
from infinitevl.server import lasting

if TYPE_CHECKING:
    from infinitevl.server.settings import Settings

BOX = "infinitevl-box"
KEYS = "INFINITEVL_API_KEYS"


@dataclass
class ServeOptions:
    model: str | None
    device: str | None
    dtype: str | None
    host: str
    port: int
    api_keys: tuple[str, ...]
    state_dir: str | None
    replicas: int | None
    slots: int
    max_streams: int
    streams_per_key: int
    questions_per_key: int
    max_body: int
    max_upload: int
    save_every: float
    allow_source: tuple[str, ...]


def run(options: ServeOptions) -> int:
    lasting.share_heaps()
    try:
        from infinitevl.server.run import Running
    except ModuleNotFoundError as error:
        raise InfiniteVLError(f"{error.name} is missing: pip install 'infinitevl[serve]'") from None
    if options.replicas:
        return _run_replicas(options, options.replicas)
    if "://" in (options.state_dir or ""):
        raise InfiniteVLError("--state-dir is an address: that needs --replicas")
    settings = _settings(options)
    with _listening(options.host, options.port) as listener:
        _check_keys(options, settings, listener)
        _make_private(settings.folder)
        with _alone_in(settings.folder):
            running = Running(load_model(options.model, options.device, options.dtype), _budget(options), settings)
            with lasting.collecting_often(), _quiet_signals():
                running.serve(listener, f"infinitevl serving {settings.model} at {_address(options.host, listener)}")
    return 0


def _run_replicas(options: ServeOptions, replicas: int) -> int:
    try:
        from infinitevl.cluster.run import Plan, run
    except ModuleNotFoundError as error:
        raise InfiniteVLError(f"{error.name} is missing: pip install 'infinitevl[serve,cluster]'") from None
    settings, model = _settings(options), _model(options.model)
    with _listening(options.host, options.port) as listener:  # Ray's proxy does when this is closed
        _check_keys(options, settings, listener)
        line, port = f"infinitevl serving {settings.model} at {_address(options.host, listener)}", _port(listener)
    store = options.state_dir or ""
    if "://" not in store:
        _make_private(settings.folder)
        store = str(settings.folder.resolve())
    plan = Plan(model, options.device, options.dtype, store, _budget(options), settings)
    run(plan, replicas, options.host, port, line)
    return 0


def _model(name: str | None) -> str | None:
    """What the replicas load; a mistake is told before they start."""
    from infinitevl.model.info import describe

    if name is None:
        describe(boxed_model())
        return None
    if len(Path(name).parts) == 2 and not Path(name).exists():
        return name  # of the hub
    describe(Path(name))
    return str(Path(name).resolve())


def _check_keys(options: ServeOptions, settings: "Settings", listener: socket.socket) -> None:
    if not settings.keys and not ip_address(listener.getsockname()[0]).is_loopback:
        raise InfiniteVLError(f"--host {options.host} without --api-key would serve everybody: give a key")


def _make_private(folder: Path) -> None:
    """What streams have seen lies there, and passwords of their sources."""
    make_folder(folder)
    folder.chmod(0o700)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two servers would overwrite each other's streams."""
    try:
        held = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise InfiniteVLError(f"{folder} is another server's: give another --state-dir") from None
    with held:
        yield


def _settings(options: ServeOptions) -> "Settings":
    from infinitevl.server.allowed import Allowed
    from infinitevl.server.settings import Settings

    Allowed(options.allow_source)  # complains of entries that are neither a folder nor an address
    more = [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]
    return Settings(
        model=_name(options.model), folder=Path(options.state_dir or _state_dir()), keys=(*options.api_keys, *more),
        sources=options.allow_source, streams_per_key=options.streams_per_key,
        questions_per_key=options.questions_per_key, max_body=options.max_body * 2**20,
        max_upload=options.max_upload * 2**20,
    )  # fmt: skip


def _budget(options: ServeOptions) -> Any:
    from infinitevl.engine.types import Budget

    return Budget(slots=options.slots, streams=options.max_streams, save_every=options.save_every)


def _name(model: str | None) -> str:
    """What clients call the model: no folder of this machine is told."""
    if model is None:
        return BOX
    return Path(model).resolve().name if Path(model).is_dir() else model


def _state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "infinitevl"


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens, before anything that takes long."""
    try:
        family, kind, number, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
    except OSError as error:
        raise InfiniteVLError(f"--host {host}: {error.strerror or error}") from None
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        except OSError as error:
            raise InfiniteVLError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from None
        yield listener


def _address(host: str, listener: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{_port(listener)}"


def _port(listener: socket.socket) -> int:
    return listener.getsockname()[1]


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """The server ends in order on a signal, then raises it again: it has been obeyed by then."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
