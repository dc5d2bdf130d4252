"""What `serve.py` measures: frames to send, the engine alone, and a server of its own."""

import argparse
import io
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infinitevl.data.streamworld import World

PICTURES = 64


def jpegs(kind: str, size: int) -> list[bytes]:
    """Encoded before the run, so that sending costs next to nothing."""
    return [encoded(frame) for frame in islice(noise(size) if kind == "random" else scenes(size), PICTURES)]


def noise(size: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


def scenes(size: int) -> Iterator[np.ndarray]:
    world = World(0, "test", size=size)
    return (world.frame(8 * index) for index in count())


def encoded(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=90)
    return file.getvalue()


def engine_alone(
    model: str | None, slots: int, streams: int, pictures: list[bytes], seconds: float
) -> tuple[float, float]:
    """The engine in this process, with as many streams, no HTTP, no disk and no question: frames a second, and frames
    a second of CPU, which other work on this machine changes less."""
    import infinitevl
    from infinitevl.engine.engine import Engine
    from infinitevl.engine.types import Budget

    frames = [np.asarray(Image.open(io.BytesIO(data))) for data in pictures]
    engine, seen = Engine(infinitevl.load(model), Budget(slots=slots, streams=streams)), 0

    def told(result: Any) -> None:
        nonlocal seen
        seen += result.result == "seen"

    ids = [engine.open({}, fps=None) for _ in range(streams)]

    def show(number: int) -> None:
        for id in ids:
            engine.push(id, frames[number % len(frames)], number / 2, told, wait=60.0)

    for number in range(3):
        show(number)
    began, busy, before = time.monotonic(), time.process_time(), seen
    for number in count(3):
        show(number)
        if time.monotonic() >= began + seconds:
            frames_seen, wall, cpu = seen - before, time.monotonic() - began, time.process_time() - busy
            engine.close()
            return frames_seen / wall, frames_seen / cpu
    raise AssertionError


def ceiling(given: argparse.Namespace, pictures: list[bytes]) -> tuple[float, float]:
    """`engine_alone` in a process that ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(engine_alone, given.model, given.slots, given.streams, pictures, given.alone).result()


@contextmanager
def started(given: argparse.Namespace, log: Path) -> Iterator[tuple[str, int]]:
    """A server of this run's own: its address and process. RuntimeError where it does not come up, or go down."""
    command = [sys.executable, "-c", "from infinitevl.cli import main; main()", "serve", "--port", "0"]
    command += ["--state-dir", str(log.parent / "state"), "--slots", str(given.slots)]
    command += ["--streams-per-key", str(given.streams + 16), "--max-streams", str(given.streams + 16)]
    command += ["--model", given.model] if given.model else []
    with log.open("w") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert server.stdout
    try:
        found = re.search(r"http://\S+", server.stdout.readline())
        if not found:
            raise RuntimeError(f"the server did not start: {log.read_text()[-500:]}")
        yield found[0], server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            raise RuntimeError("the server did not go down within a minute") from None
