"""The clients of `serve.py`: cameras that keep to their times, people who ask, and everything else that clients do."""

import argparse
import asyncio
import os
import random
import sys
import time
from array import array
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from infinitevl.client import Acknowledgement, AsyncClient, ClientError

AHEAD, ANSWER_TOKENS = 64, 16
QUESTIONS = ("What does the sign say?", "What moves to the left?", "What was on the first card?")
RUBBISH = b"\xff\xd8\xff rubbish"
MIB = 2**20


@dataclass
class Log:
    """What was measured. Times are in seconds since the beginning."""

    began: float = 0.0
    at: array = field(default_factory=lambda: array("d"))  # of every frame in memory: when it was due,
    lags: array = field(default_factory=lambda: array("d"))  # and seconds to its acknowledgement,
    server_lags: array = field(default_factory=lambda: array("d"))  # and to memory, by the server's word
    dropped_at: array = field(default_factory=lambda: array("d"))  # of every frame that was dropped: when it was due
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
        elif told.result == "dropped":
            log.dropped_at.append(due)
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
