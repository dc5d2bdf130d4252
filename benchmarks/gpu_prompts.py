"""How long the 4B model's sizes, random weights, take to read a prompt given to `forward`, as `generate` gives it.

python benchmarks/gpu_prompts.py [--tokens 8,64,...]
From CUDA graphs, in pieces, and without: kernel after kernel, the prompt as a whole. In turns.
"""

import argparse
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gpu_graphs import CUDA, made
from harness import report
from infinitevl.machine import clock, machine
from infinitevl.model import graphs

TOKENS = "8,64,256,700,1024,4096,16384,65536"
WARM, REPEATS = 2, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default=TOKENS)
    given = parser.parse_args()
    model = made("bfloat16")
    rows = [row(model, int(tokens)) for tokens in given.tokens.split(",")]
    report("gpu_prompts", rows, machine=machine(CUDA), dtype="bfloat16")


def row(model: Any, tokens: int) -> dict[str, Any]:
    ids = torch.randint(0, 250, (1, tokens), device=CUDA)
    replays, times = graphs.replays, dict[str, float]()
    for name, does in (("graphs ms", replays), ("none ms", lambda *_: False)):
        graphs.replays = does
        spent = [clock(lambda: read(model, ids), CUDA) for _ in range(WARM + REPEATS)]
        times[name] = 1e3 * median(spent[WARM:])
    graphs.replays = replays
    return {"tokens": tokens, **times}


@torch.no_grad()
def read(model: Any, ids: Tensor) -> None:
    model(ids, past_key_values=model.allocate_state(), logits_to_keep=1)


if __name__ == "__main__":
    main()
