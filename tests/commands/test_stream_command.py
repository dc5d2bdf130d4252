"""`infinitevl stream`: sources, questions, JSON lines, saved streams, mistakes."""

import functools
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import infinitevl
from infinitevl.streaming import stream as streaming
from infinitevl.streaming.stream import Stream
from infinitevl.video.sources import open_video

Run = Callable[..., Any]
QUICK = ("--fps", "0.5", "--max-pixels", "12544", "--max-tokens", "6")
FRAMES = {"1.mp4": 5, "2.avi": 5, "3.mp4": 4}  # at half a frame a second
SUMMARY = ["event", "frames", "tokens", "dropped", "seconds", "fps", "state_bytes"]


def events(done: Any) -> list[dict]:
    """The JSON lines, whose form is checked."""
    found = [json.loads(line) for line in done.out]
    for event in found[:-1]:
        assert list(event) == ["event", "time", "question", "answer"]
        assert event["event"] == "answer"
    assert list(found[-1]) == SUMMARY
    assert found[-1]["event"] == "summary"
    return found


def watched(checkpoint: Path, *sources: Path, until: float = float("inf")) -> Stream:
    stream = infinitevl.load(checkpoint).stream(fps=0.5, max_pixels=12544)
    for source in sources:
        for time, frame in open_video(source, fps=0.5):
            if time <= until:
                stream.see(frame, time)
    return stream


def answer(stream: Stream, question: str) -> str:
    return "".join(stream.ask(question, max_new_tokens=6))


# Questions and answers


def test_json_lines(run: Run, media: Path, checkpoint: Path):
    asked = ("--ask", "At the end?", "--ask", "4.5: On the way?", "--ask", "0: First?", "--ask", "99: Late?")
    done = run("stream", media / "1.mp4", "--json", *QUICK, *asked)
    assert (done.code, done.err) == (0, [])
    *answers, summary = events(done)
    assert [(a["time"], a["question"]) for a in answers] == [
        (0.0, "First?"), (4.5, "On the way?"), (99.0, "Late?"), (8.0, "At the end?")
    ]  # fmt: skip
    for event, until in zip(answers, (0, 4.5, 99, 99), strict=True):
        assert event["answer"] == answer(watched(checkpoint, media / "1.mp4", until=until), event["question"])
    whole = watched(checkpoint, media / "1.mp4").stats
    assert (summary["frames"], summary["tokens"], summary["dropped"]) == (5, whole.tokens, 0)
    assert summary["state_bytes"] == whole.state_bytes
    assert summary["fps"] == pytest.approx(5 / summary["seconds"], rel=0.05)


def test_text_for_people(run: Run, media: Path):
    done = run("stream", media / "3.mp4", *QUICK, "--ask", "2: Is [b]it[/b] :smile:? " + "x" * 100)
    assert (done.code, done.err) == (0, [])
    assert done.out[0] == "     2.0 s Is [b]it[/b] :smile:? " + "x" * 100
    assert done.out[1].startswith(" " * 11)
    assert done.out[-1].startswith("4 frames, ")
    assert done.out[-1].endswith("KiB")


def test_remembered_answers(run: Run, media: Path, checkpoint: Path):
    asked = ("--ask", "0: First?", "--ask", "Last?")
    done = run("stream", media / "3.mp4", "--json", "--remember", *QUICK, *asked)
    stream = infinitevl.load(checkpoint).stream(fps=0.5, max_pixels=12544)
    answers = []
    for i, (time, frame) in enumerate(open_video(media / "3.mp4", fps=0.5)):
        stream.see(frame, time)
        if i == 0:
            answers.append("".join(stream.ask("First?", remember=True, max_new_tokens=6)))
    answers.append("".join(stream.ask("Last?", remember=True, max_new_tokens=6)))
    *found, summary = events(done)
    assert [event["answer"] for event in found] == answers
    assert summary["tokens"] == stream.stats.tokens


def test_sampled_answers(run: Run, media: Path):
    options = ("stream", media / "3.mp4", "--json", *QUICK, "--ask", "What?", "--temperature", "3")
    found = [events(run(*options, "--seed", seed))[0]["answer"] for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_questions_from_a_pipe(run: Run, media: Path, checkpoint: Path):
    done = run("stream", media / "3.mp4", "--json", *QUICK, stdin="Was ist das?\n\n  Und \xff?\n".encode("latin-1"))
    assert (done.code, done.err) == (0, [])
    stream = watched(checkpoint, media / "3.mp4")
    assert [(e["time"], e["question"], e["answer"]) for e in events(done)[:-1]] == [
        (6.006, question, answer(stream, question)) for question in ("Was ist das?", "Und \ufffd?")
    ]


def test_no_questions_at_all(run: Run, media: Path):
    assert [event["event"] for event in events(run("stream", media / "3.mp4", "--json", *QUICK))] == ["summary"]
    assert run("stream", media / "3.mp4", *QUICK, stdin=None).code == 0


# Sources


@pytest.mark.parametrize("name", FRAMES)
def test_files(run: Run, media: Path, name: str):
    done = run("stream", media / name, "--json", *QUICK, "--ask", "What?")
    assert (done.code, done.err) == (0, [])
    assert events(done)[-1]["frames"] == FRAMES[name]


@pytest.mark.parametrize("name", FRAMES)
def test_standard_input(run: Run, media: Path, name: str):
    """From a pipe, as `cat clip | infinitevl stream -`; it is the same video as from a file."""
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb") as pipe:
            pipe.write((media / name).read_bytes())

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(out, "r", encoding="latin-1") as pipe:
        done = run("stream", "-", "--json", *QUICK, "--ask", "What?", stdin=pipe)
    writer.join()
    assert (done.code, done.err) == (0, [])
    assert events(done)[:-1] == events(run("stream", media / name, "--json", *QUICK, "--ask", "What?"))[:-1]


@pytest.fixture
def address(media: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(media))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", FRAMES)
def test_http(run: Run, media: Path, address: str, name: str):
    done = run("stream", f"{address}/{name}", "--json", *QUICK, "--ask", "What?")
    assert (done.code, done.err) == (0, [])
    assert events(done)[:-1] == events(run("stream", media / name, "--json", *QUICK, "--ask", "What?"))[:-1]
    missing = run("stream", f"{address}/no-{name}", *QUICK)
    assert (missing.code, len(missing.err), missing.out) == (2, 1, [])


def index_first(source: Path, out: Path) -> Path:
    """The same mp4 with its index at the front, so that a part of it can be played."""
    with av.open(str(source)) as given, av.open(str(out), "w", options={"movflags": "faststart"}) as made:
        track = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = track
                made.mux(packet)
    return out


@pytest.mark.parametrize("percent", [10, 50, 90])
@pytest.mark.parametrize("name", [*FRAMES, "index first.mp4"])
def test_truncated_files(run: Run, media: Path, tmp_path: Path, name: str, percent: int):
    """What holds frames ends with them and a warning; an mp4 without its index, which comes last, holds none."""
    source = media / name if name in FRAMES else index_first(media / "1.mp4", tmp_path / "whole.mp4")
    data = source.read_bytes()
    (cut := tmp_path / name).write_bytes(data[: len(data) * percent // 100])
    done = run("stream", cut, "--json", *QUICK, "--ask", "What?")
    assert len(done.err) == 1
    assert str(cut) in done.err[0]
    if name in ("1.mp4", "3.mp4"):
        assert (done.code, done.out) == (2, [])
        assert "truncated" in done.err[0]
    else:
        assert done.code == 0
        assert done.err[0].startswith("infinitevl: warning: ")
        assert 1 <= events(done)[-1]["frames"] <= 5 * percent / 100 + 1


def test_a_folder_of_pictures(run: Run, tmp_path: Path):
    """Of several sizes, one of them damaged."""
    for i, size in enumerate([(56, 56), (84, 140), (280, 28)]):
        Image.fromarray(np.full((*size, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    assert events(run("stream", tmp_path, "--json", *QUICK, "--ask", "2: What?"))[-1]["frames"] == 3
    (tmp_path / "1.png").write_bytes(b"no picture")
    done = run("stream", tmp_path, "--json", *QUICK)
    assert (done.code, len(done.err), events(done)[-1]["frames"]) == (0, 1, 2)


def test_a_live_source_drops_what_comes_too_late(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    see, busy = Stream.see, threading.Event()

    def slow(stream: Stream, *args: Any) -> bool:
        busy.wait(0.1)
        return see(stream, *args)

    monkeypatch.setattr(Stream, "see", slow)
    for i in range(20):
        Image.fromarray(np.full((56, 56, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    summary = events(run("stream", tmp_path, "--json", "--live", "--fps", "50"))[-1]
    assert summary["dropped"] > 0
    assert summary["frames"] + summary["dropped"] == 20


# Saved streams


def test_a_saved_stream_goes_on(run: Run, media: Path, checkpoint: Path, tmp_path: Path):
    saved = tmp_path / "saved"
    first = events(run("stream", media / "3.mp4", "--json", *QUICK, "--save-state", saved))[-1]
    states = ("--load-state", saved, "--save-state", saved)
    done = run("stream", media / "2.avi", "--json", *QUICK, *states, "--ask", "What?")
    stream = watched(checkpoint, media / "3.mp4", media / "2.avi")
    *answers, summary = events(done)
    assert [event["answer"] for event in answers] == [answer(stream, "What?")]
    assert (first["frames"], summary["frames"], summary["tokens"]) == (4, 9, stream.stats.tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    again = Stream.load(infinitevl.load(checkpoint), saved)
    assert answer(again, "And?") == answer(stream, "And?")


def test_an_interrupt_leaves_a_whole_stream(
    run: Run, media: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C in the middle of a frame: the frame is taken in, told of and saved."""
    encode, calls, usual = streaming.encode_frames, [], signal.getsignal(signal.SIGINT)

    def interrupted(model: Any, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return encode(model, *args)

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "encode_frames", interrupted)
        done = run("stream", media / "1.mp4", "--json", *QUICK, "--save-state", "saved", "--ask", "What?")
    assert done.code == 130
    assert (len(done.out), events(done)[-1]["frames"]) == (1, 3)
    stream = Stream.load(infinitevl.load(checkpoint), tmp_path / "saved")
    assert answer(stream, "What?") == answer(watched(checkpoint, media / "1.mp4", until=4.0), "What?")
    assert signal.getsignal(signal.SIGINT) is usual


# Mistakes


@pytest.fixture
def mistakes(tmp_path: Path) -> Path:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 50)
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged").write_bytes(b"\x10" + bytes(7) + b"{" * 16)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.mp4"], "missing.mp4: no such file"),
        (["empty.mp4"], "empty.mp4: empty"),
        (["text.mp4"], "text.mp4: not a video"),
        (["folder"], "folder: a folder without pictures"),
        (["http://127.0.0.1:9/x.mp4"], "127.0.0.1:9"),
        (["ftp://x/y.mp4"], "not an http, https or rtsp address"),
        ([], "Missing argument 'SOURCE'"),
        (["CLIP", "--ask", ""], "a question looks like"),
        (["CLIP", "--ask", "-3: What?"], "a question looks like"),
        (["CLIP", "--ask", "3:"], "a question looks like"),
        (["CLIP", "--fsp", "2"], "No such option '--fsp'"),
        (["CLIP", "--fps", "0"], "fps must be a positive number, not 0"),
        (["CLIP", "--fps", "-1"], "fps must be a positive number, not -1"),
        (["CLIP", "--fps", "nan"], "fps must be a positive number, not nan"),
        (["CLIP", "--fps", "fast"], "'fast' is not a valid float"),
        (["CLIP", "--max-pixels", "100"], "100 is not in the range x>=784"),
        (["CLIP", "--max-tokens", "0"], "0 is not in the range x>=1"),
        (["CLIP", "--temperature", "-1"], "-1.0 is not in the range x>=0"),
        (["CLIP", "--top-p", "0"], "0.0 is not in the range 0<x<=1"),
        (["CLIP", "--seed", str(2**64)], "not in the range"),
        (["CLIP", "--model", "nothing"], "no such checkpoint folder: nothing"),
        (["CLIP", "--model", "folder"], "folder has no config.json"),
        (["CLIP", "--model", ""], "has no config.json"),
        (["CLIP", "--device", "toaster"], "cannot use the device 'toaster'"),
        (["CLIP", "--dtype", "float99"], "unknown dtype 'float99'"),
        (["CLIP", "--load-state", "missing"], "File 'missing' does not exist"),
        (["CLIP", "--load-state", "damaged"], "damaged is not a state file, or is damaged"),
        (["CLIP", "--save-state", "nowhere/saved"], "--save-state nowhere/saved"),
        (["CLIP", "--save-state", "folder"], "--save-state folder: is a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(run: Run, media: Path, mistakes: Path, args: list[str], message: str):
    done = run("stream", *[media / "3.mp4" if arg == "CLIP" else arg for arg in args])
    assert (done.code, done.out, len(done.err)) == (2, [], 1), done
    assert message in done.err[0]
    assert done.err[0].startswith("infinitevl: ")


# The keyboard


class Keyboard(io.StringIO):
    """A terminal on which each line is typed when its condition holds, then Ctrl-D."""

    def __init__(self, *lines: tuple[str, Callable[[], bool]]) -> None:
        super().__init__()
        self.lines = list(lines)

    def isatty(self) -> bool:
        return True

    def readline(self, *_: object) -> str:
        if not self.lines:
            return ""
        text, ready = self.lines.pop(0)
        for _ in range(1000):
            if ready():
                return f"{text}\n"
            threading.Event().wait(0.01)
        raise AssertionError("waited for too long")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of the frames that any stream has taken."""
    times, see = [], Stream.see

    def noted(stream: Stream, frame: Any, time: float) -> bool:
        taken = see(stream, frame, time)
        times.append(time)
        return taken

    monkeypatch.setattr(Stream, "see", noted)
    return times


@pytest.mark.parametrize("options", [[], ["--remember"]])
def test_typed_questions(run: Run, media: Path, checkpoint: Path, seen: list[float], options: list[str]):
    keyboard = Keyboard(("", lambda: True), ("What?", lambda: len(seen) == 4))
    done = run("stream", media / "3.mp4", "--json", *QUICK, *options, stdin=keyboard)
    *answers, summary = events(done)
    stream = watched(checkpoint, media / "3.mp4")
    assert answers == [{"event": "answer", "time": 6.006, "question": "What?", "answer": answer(stream, "What?")}]
    assert summary["frames"] == 4
    assert (summary["tokens"] > stream.stats.tokens) == bool(options)
    assert done.code == 0
    assert any("Ctrl-D" in line for line in done.err)


def test_a_source_that_breaks_under_the_keyboard(run: Run, media: Path, monkeypatch: pytest.MonkeyPatch):
    """Told at once, and with exit code 2 at the end."""
    broken = threading.Event()

    def see(*_: object) -> bool:
        broken.set()
        raise infinitevl.InfiniteVLError("the camera fell")

    monkeypatch.setattr(Stream, "see", see)
    done = run("stream", media / "3.mp4", *QUICK, stdin=Keyboard(("", broken.is_set)))
    assert done.code == 2
    assert done.err == ["infinitevl: the camera fell"]
    assert any("the camera fell" in line for line in done.out)


def test_a_terminal_is_no_video(run: Run):
    done = run("stream", "-", stdin=Keyboard())
    assert (done.code, done.err) == (2, ["infinitevl: standard input is a terminal: pipe a video into it"])
