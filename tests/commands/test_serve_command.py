"""`infinitevl serve`: what is wrong is told in one line before anything takes long; a server ends in order."""

import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock

from infinitevl.server import run as running


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Servers that would run: what they were given."""
    made: list[Any] = []

    class Running:
        def __init__(self, model: Any, budget: Any, settings: Any) -> None:
            made.append((model, budget, settings))

        def serve(self, listener: socket.socket, line: str) -> None:
            made.append(line)

    monkeypatch.setattr(running, "Running", Running)
    monkeypatch.delenv("INFINITEVL_API_KEYS", raising=False)
    return made


def test_the_options_reach_the_server(run, begun: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("INFINITEVL_API_KEYS", "key-of-two-22, key-of-three")
    (tmp_path / "films").mkdir()
    options = {
        "--port": 0, "--api-key": "key-of-one-1", "--state-dir": tmp_path / "state", "--slots": 2, "--max-streams": 3,
        "--streams-per-key": 4, "--questions-per-key": 5, "--max-body": 6, "--max-upload": 7, "--save-every": 8,
        "--allow-source": tmp_path / "films",
    }  # fmt: skip
    done = run("serve", *[each for pair in options.items() for each in pair])
    assert done.code == 0, done.err
    (_, budget, settings), line = begun
    assert (budget.slots, budget.streams, budget.save_every) == (2, 3, 8.0)
    assert settings.keys == ("key-of-one-1", "key-of-two-22", "key-of-three")
    assert (settings.streams_per_key, settings.questions_per_key) == (4, 5)
    assert (settings.max_body, settings.max_upload) == (6 * 2**20, 7 * 2**20)
    assert settings.folder == tmp_path / "state" and settings.sources == (str(tmp_path / "films"),)
    assert settings.model == "model", "the folder's name, and nothing of where it is"
    assert line.startswith("infinitevl serving model at http://127.0.0.1:")


def test_streams_are_kept_where_states_belong(run, begun: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert run("serve", "--port", 0).code == 0
    assert begun[0][2].folder == tmp_path / "xdg" / "infinitevl"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run("serve", "--port", 0).code == 0
    assert begun[2][2].folder == tmp_path / "home" / ".local" / "state" / "infinitevl"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 without --api-key would serve everybody: give a key"),
        (["--host", "::"], "--host :: without --api-key would serve everybody: give a key"),
        (["--api-key", "short"], "an API key has 8 to 128 characters out of A-Z, a-z, 0-9, _ and -"),
        (["--allow-source", "nowhere"], "--allow-source nowhere: neither an address nor a folder"),
        (["--allow-source", "ftp://host/"], "a source is an http, https or rtsp address, or the name of a file"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: "),
        (["--state-dir", "/proc/nothing"], "cannot use /proc/nothing as a folder: "),
    ],
)
def test_mistakes_are_one_line(run, begun: list[Any], options: list[str], line: str):
    done = run("serve", "--port", 0, *options)
    assert done.code == 2 and not begun
    assert len(done.err) == 1 and done.err[0].startswith(f"infinitevl: {line}"), done.err


def test_others_are_served_with_a_key(run, begun: list[Any]):
    assert run("serve", "--host", "0.0.0.0", "--port", 0, "--api-key", "long-enough-1").code == 0
    assert begun


def test_a_port_in_use(run, begun: list[Any]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", port)
    assert done.code == 2 and not begun
    assert done.err == [f"infinitevl: cannot listen at 127.0.0.1, port {port}: Address already in use"]


def test_a_folder_in_use(run, begun: list[Any], tmp_path: Path):
    """One server after the other uses it, never two at a time."""
    (tmp_path / "state").mkdir()
    wanted = ("serve", "--port", 0, "--state-dir", tmp_path / "state")
    with FileLock(tmp_path / "state" / ".lock"):
        done = run(*wanted)
    assert done.code == 2 and not begun
    assert done.err == [f"infinitevl: {tmp_path / 'state'} is another server's: give another --state-dir"]
    assert [run(*wanted).code for _ in range(2)] == [0, 0]


def test_it_serves_until_it_is_told_to_end(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    servers: list[Any] = []
    startup = running.Server.startup

    async def noted(self: Any, sockets: Any = None) -> None:
        await startup(self, sockets)
        servers.append(self)
        threading.Thread(target=ask, args=(sockets[0].getsockname()[1],)).start()

    def ask(port: int) -> None:
        told.append(httpx.get(f"http://127.0.0.1:{port}/healthz").json())
        servers[0].should_exit = True

    told: list[Any] = []
    monkeypatch.setattr(running.Server, "startup", noted)
    done = run("serve", "--port", 0, "--state-dir", tmp_path / "state")
    assert done.code == 0 and told == [{"status": "ok", "model": "model", "streams": 0}]
    assert len(done.out) == 1 and done.out[0].startswith("infinitevl serving model at http://127.0.0.1:")
