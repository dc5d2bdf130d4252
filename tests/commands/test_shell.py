"""A few commands as a shell runs them: other processes, pipes, a terminal."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("infinitevl")
QUICK = ("--fps", "1", "--max-pixels", "784", "--max-tokens", "4")
SECONDS = 60


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    if not COMMAND.exists():
        pytest.skip("the package is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_clip_through_a_pipe(media: Path):
    """cat clip | infinitevl stream - --json"""
    with subprocess.Popen(["cat", media / "2.avi"], stdout=subprocess.PIPE) as cat:
        args = [COMMAND, "stream", "-", "--json", *QUICK, "--ask", "3: What?"]
        done = subprocess.run(args, stdin=cat.stdout, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["answer", "summary"]


def test_a_reader_that_goes_away():
    """infinitevl --help | true"""
    with subprocess.Popen([COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(SECONDS) == 1


def test_a_terminal(media: Path):
    """Type an empty line, a question when the video has ended, and Ctrl-D."""
    terminal, shell = pty.openpty()
    args = [COMMAND, "stream", media / "2.avi", *QUICK]
    process = subprocess.Popen(args, stdin=shell, stdout=shell, stderr=shell, start_new_session=True)
    os.close(shell)
    typing = [(b"? ", b"\n"), (b"video has ended", b"What is it?\n"), (b"8.0 s", b""), (b"? ", b"\x04")]
    shown = converse(terminal, typing, time.monotonic() + SECONDS)
    assert process.wait(SECONDS) == 0, shown
    assert not typing
    assert b"9 frames" in shown.splitlines()[-1]
    assert b"Traceback" not in shown


def converse(terminal: int, typing: list[tuple[bytes, bytes]], until: float) -> bytes:
    """Type each line when what it waits for has been shown; all that was shown, when the other side has left."""
    shown, mark = b"", 0
    while time.monotonic() < until:
        if not select.select([terminal], [], [], 0.05)[0]:
            continue
        try:
            more = os.read(terminal, 4096)
        except OSError:  # what Linux gives for the end of a terminal
            more = b""
        if not more:
            break
        shown += more
        if typing and (place := shown.find(typing[0][0], mark)) >= 0:
            mark = place + len(typing[0][0])
            os.write(terminal, typing.pop(0)[1])
    os.close(terminal)
    return shown
