"""Many streams at once, as the engine computes them: a frame for each, a token for each."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch

from infinitevl.benchmark.measure import random_frames
from infinitevl.benchmark.stream import move_state_on
from infinitevl.benchmark.work import Costs
from infinitevl.engine.pool import Seat
from infinitevl.engine.runner import Runner
from infinitevl.machine import Ceilings, clock, free_bytes
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.streaming.session import Session
from infinitevl.streaming.text import Sampling

FRAMES, TOKENS = 16, 64  # streams that see a frame at once, that write a token at once
WARM, REPEATS = 2, 7


@dataclass(frozen=True)
class Crowd:
    """Median milliseconds of a frame or a token for each of so many streams, windows full, and the least possible."""

    what: Literal["frame", "token"]
    streams: int
    ms: float
    floor_ms: float


def crowds(
    model: InfiniteVLForConditionalGeneration, side: int, top: Ceilings, frames: int = FRAMES, tokens: int = TOKENS
) -> list[Crowd]:
    """Measured; none where the states do not fit, or grow. side: of a frame in pixels, one that the model takes."""
    costs, text, slots = Costs.of(model), model.config.text_config, max(frames, tokens)
    free = free_bytes(model.device)
    if "full_attention" in text.layer_types or (free is not None and slots * costs.state_bytes(0) > 0.8 * free):
        return []
    runner, seats = Runner(model, slots), [Seat() for _ in range(slots)]
    see = _watching(runner, seats[:frames], side)
    see()
    move_state_on(runner.pool.state, text.sliding_window + text.attention_sinks)
    context, patches = text.sliding_window, side // model.config.vision_config.patch_size
    work = costs.together(costs.frame((patches, patches), context), frames, vision=True)
    told = costs.together(costs.token(context), tokens, vision=False)
    greedy = [Sampling()] * tokens
    return [
        Crowd("frame", frames, _ms(see, model.device), 1e3 * top.floor(work.operations, work.nbytes)),
        Crowd(
            "token", tokens, _ms(lambda: runner.write(seats[:tokens], [5] * tokens, greedy).tolist(), model.device),
            1e3 * top.floor(told.operations, told.nbytes),
        ),
    ]  # fmt: skip


def _watching(runner: Runner, seats: list[Seat], side: int) -> Callable[[], None]:
    """What shows every seat the next frame."""
    sessions, pictures = [Session(fps=None) for _ in seats], random_frames(side, len(seats))
    pixels = torch.stack([torch.from_numpy(picture) for picture in pictures])

    def see() -> None:
        time = sessions[0].stats.frames / 2
        runner.watch(seats, sessions, pixels, [time] * len(seats))

    return see


def _ms(run: Callable[[], object], device: torch.device) -> float:
    for _ in range(WARM):
        run()
    return 1e3 * median(clock(run, device) for _ in range(REPEATS))
