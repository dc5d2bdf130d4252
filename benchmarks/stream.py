"""A stream at growing context: milliseconds per frame and per token, first answer token, bytes of memory.

python benchmarks/stream.py [--model FOLDER] [--frames 400] [--side 224] [--device cuda]
Without --model: the small random-weight model. The last column is the ratio to the first row: 1 means that a frame
costs the same however much was seen before.
"""

import argparse
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import numpy as np
import torch

import infinitevl
from harness import ceilings, machine, report
from infinitevl.model.random_model import random_model

QUESTION, ANSWER_TOKENS, BLOCKS = "What do you see in this video?", 16, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--side", type=int, default=224)
    given = parser.parse_args()
    device = torch.device(given.device)
    model = infinitevl.load(given.model, device=device) if given.model else _random(device)
    stream = infinitevl.Stream(model, fps=None, max_pixels=given.side**2)
    frame = np.random.default_rng(0).integers(0, 256, (given.side, given.side, 3), dtype=np.uint8)
    for i in range(8):  # warm up
        stream.see(frame, i / 24)
    rows = [_block(stream, frame, given.frames // BLOCKS) for _ in range(BLOCKS)]
    for row in rows:
        row["ratio"] = row["ms/frame p50"] / rows[0]["ms/frame p50"]
    top = ceilings(device, model.dtype)
    floor = top.floor(_operations(model, rows[0]["tokens a frame"]), _bytes(model))
    report(
        "stream", rows, machine=machine(device), dtype=str(model.dtype), floor_ms=floor * 1e3,
        of_floor=floor * 1e3 / median(row["ms/frame p50"] for row in rows),
    )  # fmt: skip


def _random(device: torch.device):
    model = random_model().to(device)
    return model.to(torch.bfloat16) if device.type == "cuda" else model


def _block(stream: infinitevl.Stream, frame: np.ndarray, frames: int) -> dict:
    seconds, before = [], stream.stats.tokens
    for _ in range(frames):
        began = perf_counter()
        stream.see(np.roll(frame, stream.stats.frames, axis=0))
        _wait(stream)
        seconds.append((perf_counter() - began) * 1e3)
    cuts = quantiles(seconds, n=100)
    first, token = _answer(stream)
    return {
        "frames": stream.stats.frames, "context tokens": stream.stats.tokens,
        "tokens a frame": (stream.stats.tokens - before) // frames,
        "ms/frame p50": median(seconds), "p95": cuts[94], "p99": cuts[98], "frames/s": 1e3 / median(seconds),
        "ms to first token": first, "ms/token": token, "state bytes": stream.stats.state_bytes,
    }  # fmt: skip


def _answer(stream: infinitevl.Stream) -> tuple[float, float]:
    """Milliseconds until the model has chosen the first token of an answer, and per token after it."""
    times = []
    for limit in (1, 1 + ANSWER_TOKENS):
        began = perf_counter()
        with torch.inference_mode():
            "".join(stream.ask(QUESTION, max_new_tokens=limit))
        _wait(stream)
        times.append((perf_counter() - began) * 1e3)
    return times[0], (times[1] - times[0]) / ANSWER_TOKENS


def _wait(stream: infinitevl.Stream) -> None:
    if stream.model.device.type == "cuda":
        torch.cuda.synchronize()


def _bytes(model: infinitevl.InfiniteVLForConditionalGeneration) -> float:
    return float(
        sum(p.nbytes for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    )


def _operations(model: infinitevl.InfiniteVLForConditionalGeneration, tokens: int) -> float:
    """Of the linear layers: two per parameter and token, with four patches to a token in the vision tower."""
    named = dict(model.named_parameters())
    vision = sum(p.numel() for name, p in named.items() if ".visual." in name)
    language = sum(p.numel() for name, p in named.items() if ".language_model.layers" in name)
    return 2.0 * tokens * (4 * vision + language)


if __name__ == "__main__":
    main()
