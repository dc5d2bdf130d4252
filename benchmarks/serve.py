"""Many streams and questions against a server: lag, answers, losses, fairness, and its memory over time.

python benchmarks/serve.py --start [--streams 32] [--fps 1] [--clients 4] [--seconds 600] [--overload 4] [--soak]
python benchmarks/serve.py --url http://127.0.0.1:8000 [--key KEY] [--pid PID]

--start serves the model in the box (or --model) from a folder of its own, after the engine alone has shown what it can
do without HTTP: the ceiling of frames a second. Frames are sent when they are due, however late the server is, and lag
counts from then. --soak also forks, saves, cancels, hangs up and sends rubbish all the time, and in 5 minutes or more
memory must not grow.
"""

import argparse
import asyncio
import io
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from harness import report
from infinitevl.client import Acknowledgement, AsyncClient, ClientError
from infinitevl.data.streamworld import World

PICTURES, AHEAD, ANSWER_TOKENS, BUCKET = 64, 64, 16, 5.0
QUESTIONS = ("What does the sign say?", "What moves to the left?", "What was on the first card?")
WARM_UP = 60.0  # seconds, at most, and a quarter of the run
GROWTH, JUDGED = 1.0, 300.0  # MiB a minute that a soak lets pass; in less seconds memory has not settled
RUBBISH = b"\xff\xd8\xff rubbish"
MIB = 2**20


@dataclass
class Log:
    """What was measured. Times are in seconds since the beginning."""

    began: float = 0.0
    at: array = field(default_factory=lambda: array("d"))  # of every frame in memory: when it was due,
    lags: array = field(default_factory=lambda: array("d"))  # and seconds to its acknowledgement,
    server_lags: array = field(default_factory=lambda: array("d"))  # and to memory, by the server's word
    asked_at: array = field(default_factory=lambda: array("d"))
    firsts: array = field(default_factory=lambda: array("d"))
    wholes: array = field(default_factory=lambda: array("d"))
    results: list[Counter] = field(default_factory=list)  # of each stream
    refusals: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    memory: list[tuple[float, float, float]] = field(default_factory=list)  # when, bytes, seconds of CPU
    load: float = 0.0  # seconds of CPU of this process

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    def total(self, result: str) -> int:
        return sum(counter[result] for counter in self.results)


class Load:
    """All clients of a run."""

    def __init__(self, given: argparse.Namespace, url: str, pid: int | None, pictures: list[bytes]) -> None:
        self.given, self.url, self.pid, self.pictures = given, url, pid, pictures
        self.rate = given.fps * given.overload
        self.log = Log(results=[Counter() for _ in range(given.streams)])

    def run(self) -> Log:
        began = time.process_time()
        asyncio.run(self._run())
        self.log.load = time.process_time() - began
        return self.log

    async def _run(self) -> None:
        given = self.given
        async with AsyncClient(self.url, given.key) as client:
            ids = [(await client.streams.create(f"load {i}", fps=self.rate)).id for i in range(given.streams)]
            self.log.began = time.monotonic()
            work = [self._feed(client, id, index) for index, id in enumerate(ids)]
            work += [self._question(client, ids, random.Random(i)) for i in range(given.clients)]
            work += [self._soak(client, ids)] if given.soak else []
            try:
                await asyncio.gather(self._watch_server(), *work)
            finally:
                for id in ids:
                    with suppress(ClientError):
                        await client.streams.delete(id)

    async def _feed(self, client: AsyncClient, id: str, index: int) -> None:
        """One camera, which keeps to its times and comes back when the connection was lost."""
        first = index / len(self.log.results) / self.rate
        for begin in count():
            try:
                await self._play(client, id, index, first)
                return
            except ClientError as error:
                self.log.errors[f"live: {error}"] += 1
                await asyncio.sleep(min(1.0, begin))
                first += (self.log.now - first) // (1 / self.rate) / self.rate + 1 / self.rate

    async def _play(self, client: AsyncClient, id: str, index: int, first: float) -> None:
        due: dict[int, float] = {}

        def told(what: Any) -> None:
            if isinstance(what, Acknowledgement):
                self._acknowledged(index, due.pop(what.number), what)

        async with client.live(id, ahead=AHEAD, told=told) as live:
            for number in count(1):
                at = first + (number - 1) / self.rate
                if at >= self.given.seconds:
                    return
                await asyncio.sleep(max(0.0, at - self.log.now))
                due[number] = at
                await live.send(self.pictures[(number + 7 * index) % len(self.pictures)], at)

    def _acknowledged(self, index: int, due: float, told: Acknowledgement) -> None:
        log = self.log
        log.results[index][told.result] += 1
        if told.result == "seen":
            log.at.append(due)
            log.lags.append(log.now - due)
            log.server_lags.append(told.lag_ms / 1e3)
        elif told.result == "refused":
            log.errors[f"frame: {told.message}"] += 1

    async def _question(self, client: AsyncClient, ids: list[str], rng: random.Random) -> None:
        """One client that asks without a pause, but after a refusal."""
        while self.log.now < self.given.seconds:
            began, first = self.log.now, None
            try:
                async for _ in client.ask_pieces(rng.choice(ids), rng.choice(QUESTIONS), max_tokens=ANSWER_TOKENS):
                    first = first or self.log.now - began
            except ClientError as error:
                await self._refused("question", error)
                continue
            whole = self.log.now - began
            self.log.asked_at.append(began)
            self.log.firsts.append(whole if first is None else first)
            self.log.wholes.append(whole)

    async def _refused(self, what: str, error: ClientError) -> None:
        known = error.status in (429, 503)
        (self.log.refusals if known else self.log.errors)[f"{what}: {error}"] += 1
        await asyncio.sleep(0.2)

    async def _soak(self, client: AsyncClient, ids: list[str]) -> None:
        """Everything else that clients do, well or badly, one after the other."""
        for turn in count():
            if self.log.now >= self.given.seconds:
                return
            try:
                await self._turn(client, ids[turn % len(ids)], f"soak-{turn}")
            except ClientError as error:
                await self._refused("soak", error)
            await asyncio.sleep(1.0)

    async def _turn(self, client: AsyncClient, id: str, name: str) -> None:
        fork = await client.fork(id, name)
        try:
            await client.watches.create(fork.id, QUESTIONS[0], every=0.5, max_tokens=4)
            abandoned = client.ask_pieces(fork.id, QUESTIONS[1], max_tokens=1000)
            await anext(abandoned, None)
            await abandoned.close()
            await client.push(fork.id, RUBBISH)
            live = await client.live(fork.id).__aenter__()
            for picture in self.pictures[:4]:
                await live.send(picture)
            await live.ask(QUESTIONS[2], max_tokens=1000)
            await live.close()  # in the middle of it
            await client.snapshots.create(fork.id, name)
            again = await client.streams.create(name, snapshot=name)
            await client.ask(again.id, QUESTIONS[0], remember=True, max_tokens=4)
            await client.streams.delete(again.id)
            await client.snapshots.delete(name)
        finally:
            await client.streams.delete(fork.id)

    async def _watch_server(self) -> None:
        """Its memory every second, and a line for people every ten."""
        for second in count():
            if self.pid:
                self.log.memory.append((self.log.now, *_usage(self.pid)))
            if second % 10 == 0 and second:
                self._tell()
            if self.log.now >= self.given.seconds:
                return
            await asyncio.sleep(max(0.0, min(second + 1.0, self.given.seconds) - self.log.now))

    def _tell(self) -> None:
        log = self.log
        recent = [lag for at, lag in zip(log.at[-2000:], log.lags[-2000:], strict=True) if at > log.now - 10]
        lag = f"{np.percentile(recent, 95) * 1e3:.0f}" if recent else "-"
        memory = f"{log.memory[-1][1] / MIB:.0f}" if log.memory else "-"
        print(
            f"{log.now:6.0f} s  {len(recent) / 10:.1f} frames/s  lag p95 {lag} ms  {len(log.wholes)} answers  "
            f"{log.total('dropped')} dropped  {memory} MiB  {log.errors.total()} errors",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def _usage(pid: int) -> tuple[float, float]:
    """Bytes resident, seconds of CPU. ProcessLookupError where it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise ProcessLookupError(f"the server, process {pid}, has ended") from None
    return pages * os.sysconf("SC_PAGE_SIZE"), (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


# Frames, the engine alone, a server


def jpegs(kind: str, size: int) -> list[bytes]:
    """Encoded before the run, so that sending costs next to nothing."""
    rng, world = np.random.default_rng(0), World(0, "test", size=size)
    made = []
    for index in range(PICTURES):
        random_pixels = kind == "random"
        frame = rng.integers(0, 256, (size, size, 3), dtype=np.uint8) if random_pixels else world.frame(8 * index)
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


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


# Results


def percentiles(what: str, seconds: Any) -> dict[str, Any]:
    """A row of the table, in milliseconds."""
    values = np.asarray(seconds) * 1e3
    cuts = {"p50 ms": 50, "p95 ms": 95, "p99 ms": 99, "max ms": 100}
    found = {name: float(np.percentile(values, cut)) if len(values) else None for name, cut in cuts.items()}
    return {"what": what, "count": len(values)} | found


def slope(memory: list[tuple[float, float, float]], after: float) -> tuple[float, float]:
    """Growth in MiB a minute by least squares, and its standard error."""
    points = np.array([(at / 60, nbytes / MIB) for at, nbytes, _ in memory if at >= after])
    x, y = points[:, 0] - points[:, 0].mean(), points[:, 1]
    growth = float(x @ y / (x @ x))
    rest = y - y.mean() - growth * x
    return growth, float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))


def summary(given: argparse.Namespace, log: Log, warm: float, alone: tuple[float, float] | None) -> dict[str, Any]:
    seconds, seen = given.seconds - warm, [counter["seen"] for counter in log.results]
    rate = float((np.asarray(log.at) >= warm).sum() / seconds)
    facts: dict[str, Any] = {
        "streams": given.streams, "fps": given.fps, "overload": given.overload, "clients": given.clients,
        "seconds": given.seconds, "warm_up": warm, "frames_per_s": rate,
        "frames_per_s_sent": given.streams * given.fps * given.overload,
        "engine_alone_frames_per_s": alone and alone[0], "of_engine_alone": alone and rate / alone[0],
        "answers_per_s": float((np.asarray(log.asked_at) >= warm).sum() / seconds),
        **{result: log.total(result) for result in ("seen", "skipped", "dropped", "refused")},
        "seen_least": min(seen), "seen_most": max(seen), "fairness": min(seen) / max(max(seen), 1),
        "dropped_least": min(counter["dropped"] for counter in log.results),
        "dropped_most": max(counter["dropped"] for counter in log.results),
        "refusals": dict(log.refusals), "errors": dict(log.errors), "cpu_cores_of_load": log.load / given.seconds,
    }  # fmt: skip
    if len(log.memory) > 8:
        growth, error = slope(log.memory, warm)
        (first, _, begin), (last, nbytes, end) = log.memory[0], log.memory[-1]
        facts |= {
            "memory_mib": nbytes / MIB, "memory_most_mib": max(each[1] for each in log.memory) / MIB,
            "growth_mib_per_min": growth, "growth_error": error, "cpu_cores": (end - begin) / (last - first),
            "frames_per_cpu_s": sum(seen) / (end - begin), "engine_alone_frames_per_cpu_s": alone and alone[1],
        }  # fmt: skip
    return facts


def draw(log: Log, path: Path) -> None:
    """Lag and memory over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    at, lags = np.asarray(log.at), np.asarray(log.lags) * 1e3
    begins = np.arange(0, max(at, default=0), BUCKET)
    buckets = [(begin, lags[(at >= begin) & (at < begin + BUCKET)]) for begin in begins]
    for cut, colour in ((50, "tab:blue"), (95, "tab:orange"), (99, "tab:red")):
        points = [(begin + BUCKET / 2, np.percentile(found, cut)) for begin, found in buckets if len(found)]
        above.plot(*zip(*points, strict=True), color=colour, label=f"p{cut}")
    above.set(ylabel="lag of a frame, ms", ylim=(0, None), title="Due to acknowledged, and memory of the server")
    above.legend(frameon=False)
    if log.memory:
        below.plot([each[0] for each in log.memory], [each[1] / MIB for each in log.memory], color="tab:green")
    below.set(ylabel="resident memory, MiB", xlabel="seconds", ylim=(0, None))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def show(facts: dict[str, Any]) -> None:
    table = Table(title="serve", title_justify="left", show_header=False)
    for name, value in facts.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(name, text)
    Console(width=140, highlight=False).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key")
    parser.add_argument("--pid", type=int, help="of a server that runs already: its memory is watched")
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--model", default=os.environ.get("INFINITEVL_MODEL"), help="of --start")
    parser.add_argument("--slots", type=int, default=8, help="of --start")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=4, help="that ask without a pause")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--overload", type=float, default=1.0, help="multiplies the frame rate")
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--frames", choices=("world", "random"), default="world")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--alone", type=float, default=10.0, help="seconds of the engine alone; 0: not at all")
    parser.add_argument("--out", type=Path, help="a picture of lag and memory over time")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    pictures, alone = jpegs(given.frames, given.size), None
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "server.log"
        if given.start:
            alone = ceiling(given, pictures) if given.alone else None
            with started(given, output) as (url, pid):
                log = Load(given, url, pid, pictures).run()
            log.errors |= Counter(re.findall(r"^(?:Traceback|\w*Error\b.*)", output.read_text(), re.MULTILINE))
        else:
            log = Load(given, given.url, given.pid, pictures).run()
    warm = min(WARM_UP, given.seconds / 4)
    facts = summary(given, log, warm, alone)
    if given.soak and given.seconds >= JUDGED and facts.get("growth_mib_per_min", 0.0) > GROWTH:
        facts["errors"]["memory grows"] = 1
    if given.out:
        draw(log, given.out)
    show(facts)
    late = np.asarray(log.at) >= warm
    asked = np.asarray(log.asked_at) >= warm
    rows = [
        percentiles("frame: due to acknowledged", np.asarray(log.lags)[late]),
        percentiles("frame: arrived to memory (lag_ms)", np.asarray(log.server_lags)[late]),
        percentiles("answer: first piece", np.asarray(log.firsts)[asked]),
        percentiles("answer: whole", np.asarray(log.wholes)[asked]),
    ]
    report("serve", rows, **facts)
    return 1 if facts["errors"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClientError, RuntimeError, ProcessLookupError) as error:
        print(f"serve: {error}", file=sys.stderr)
        sys.exit(1)
