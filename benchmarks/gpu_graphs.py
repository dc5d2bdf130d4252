"""Where the time of a frame and of a token goes: every CUDA graph of the 4B model's sizes, random weights.

python benchmarks/gpu_graphs.py [--dtype fp8] [--streams 64]

Of every graph: the device's time for a replay, the host's to launch it, its nodes; then its kernels, summed by name (a
kernel that begins while the one before it ends counts its wait, too). First what `see` takes alone, from the picture
in the host's memory to the end of the device's work, and after what time it returns.
--streams: the graphs of a frame and a token for each of so many streams at once.
"""

import argparse
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from harness import milliseconds, report, tabulate
from infinitevl import Stream
from infinitevl.benchmark.crowd import crowds
from infinitevl.benchmark.measure import random_frames
from infinitevl.commands.bench import BenchOptions, get_model
from infinitevl.machine import ceilings, machine
from infinitevl.model.fp8 import quantise

SIDE, FULL, SHOWN = 448, 40, 12  # pixels; frames that fill the window; kernels that are listed
CUDA = torch.device("cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["bfloat16", "fp8"], default="bfloat16")
    parser.add_argument("--streams", type=int, default=1)
    given = parser.parse_args()
    model = made(given.dtype)
    with torch.inference_mode():
        facts = alone(model) if given.streams == 1 else together(model, given.streams)
        rows = [row(key, graph) for key, graph in list(model.graphs._graphs.items())]
    report(
        "gpu_graphs", rows,
        machine=machine(CUDA), dtype=given.dtype, streams=given.streams, **facts,
    )  # fmt: skip


def made(dtype: str) -> Any:
    model = get_model(
        BenchOptions(
            model=None, named=None, config="4b", random_weights=True, compare=(), tokens=None, frames=None, side=None,
            streamed=False, out=Path(), as_json=True, device="cuda", dtype="bfloat16",
        )
    ).eval()  # fmt: skip
    if dtype == "fp8":
        quantise(model)
    return model


def alone(model: Any) -> dict[str, float]:
    """A stream until its window is full, then frames one by one, and an answer."""
    stream, frames = Stream(model, fps=None, max_pixels=SIDE**2), cycle(random_frames(SIDE, 8))
    for _ in range(FULL):
        stream.see(next(frames))
    returned, ended = [], []
    for _ in range(FULL):
        torch.cuda.synchronize()
        began = perf_counter()
        stream.see(next(frames))
        returned.append(perf_counter() - began)
        torch.cuda.synchronize()
        ended.append(perf_counter() - began)
    list(stream.ask("What is it?", max_new_tokens=8))
    return {"frame ms": 1e3 * median(ended), "see returns ms": 1e3 * median(returned)}


def together(model: Any, streams: int) -> dict[str, float]:
    found = crowds(model, SIDE, ceilings(CUDA, torch.bfloat16), frames=min(16, streams), tokens=streams)
    return {f"{crowd.what} of {crowd.streams} streams, ms": crowd.ms for crowd in found}


def row(key: Any, graph: Any) -> dict[str, Any]:
    launched = []
    for _ in range(30):
        torch.cuda.synchronize()
        began = perf_counter()
        graph.graph.replay()
        launched.append(perf_counter() - began)
    name, inputs = str(key[0]), str([tuple(x.shape) for x in graph.inputs])
    kernels = traced(graph.graph)
    tabulate(f"{name}, {inputs}", kernels[:SHOWN])
    return {
        "graph": name, "inputs": inputs, "ms": milliseconds(graph.graph, 30), "launch us": 1e6 * median(launched),
        "nodes": sum(kernel["times"] for kernel in kernels),
    }  # fmt: skip


def traced(graph: Any) -> list[dict[str, Any]]:
    """What runs on the device, by name, longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        graph.replay()
        torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    return [
        {"kernel": event.key[:80], "us": event.self_device_time_total, "times": event.count}
        for event in events
        if event.self_device_time_total
    ]


if __name__ == "__main__":
    main()
