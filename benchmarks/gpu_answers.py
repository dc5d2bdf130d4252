"""Answers of many streams by the engine: the 4B model's sizes, random weights, windows full.

python benchmarks/gpu_answers.py [--streams 64,16,1]
A step writes a token of every answer. Ahead: its tokens are read when the next step is under way, as the engine does
on a GPU; at once: before it. In turns.
"""

import argparse
import threading
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Any

from gpu_graphs import CUDA, SIDE, made
from harness import report
from infinitevl.benchmark.measure import QUESTION, random_frames
from infinitevl.benchmark.stream import endless_answers, move_state_on
from infinitevl.engine.engine import Engine
from infinitevl.engine.types import Answered, Asking, Budget
from infinitevl.machine import machine

FEW, MANY, TURNS = 20, 220, 3  # tokens of answers: what the further ones take is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default="64,16,1")
    counts = [int(count) for count in parser.parse_args().streams.split(",")]
    model, most = made("bfloat16"), max(counts)
    with endless_answers(model):
        engine = Engine(model, Budget(slots=2 * most, streams=most, questions=most))
        try:
            ids = opened(engine, most)
            rows = [row(engine, ids[:count]) for count in counts]
        finally:
            engine.close()
    report("gpu_answers", rows, machine=machine(CUDA), dtype="bfloat16")


def opened(engine: Engine, count: int) -> list[str]:
    """Streams that have seen a frame, and whose windows count as full."""
    ids, frames, seen = [engine.open({}, fps=None) for _ in range(count)], cycle(random_frames(SIDE, 8)), Ended(count)
    for id, frame in zip(ids, frames, strict=False):
        engine.push(id, frame, 0.0, seen)
    seen.wait()
    text = engine.model.config.text_config
    move_state_on(engine._pool.state, text.sliding_window + text.attention_sinks)
    return ids


def row(engine: Engine, ids: list[str]) -> dict[str, Any]:
    answers, times = engine._loop.answers, {"ahead ms": list[float](), "at once ms": list[float]()}
    answered(engine, ids, FEW)  # warm up
    for _ in range(TURNS):
        for name, spent in times.items():
            answers._looks_ahead = name == "ahead ms"
            few, many = answered(engine, ids, FEW), answered(engine, ids, MANY)
            spent.append(1e3 * (many - few) / (MANY - FEW))
    step = {name: median(spent) for name, spent in times.items()}
    return {"answers": len(ids), **step, "tokens/s": 1e3 * len(ids) / step["ahead ms"]}


def answered(engine: Engine, ids: list[str], tokens: int) -> float:
    """Seconds until all have such an answer."""
    ended, began = Ended(len(ids)), perf_counter()
    for id in ids:
        engine.ask(id, QUESTION, Asking(max_tokens=tokens), lambda told: isinstance(told, Answered) and ended(told))
    ended.wait()
    return perf_counter() - began


class Ended:
    """Is told so often, then it has come."""

    def __init__(self, times: int) -> None:
        self._left, self._come = times, threading.Event()

    def __call__(self, _: object) -> None:
        self._left -= 1  # by the engine's thread alone
        if not self._left:
            self._come.set()

    def wait(self) -> None:
        assert self._come.wait(300)


if __name__ == "__main__":
    main()
