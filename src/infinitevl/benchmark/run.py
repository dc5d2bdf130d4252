"""A benchmark from a model to its results: what is measured, how far, in which company."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from infinitevl import ops
from infinitevl.benchmark.crowd import crowds
from infinitevl.benchmark.lost import quantised
from infinitevl.benchmark.measure import Plan, Subject, contexts_up_to, measure, random_frames, rows
from infinitevl.benchmark.qwen import NAME as QWEN
from infinitevl.benchmark.qwen import QwenSubject
from infinitevl.benchmark.results import OURS, Results, notes
from infinitevl.benchmark.stream import StreamSubject, endless_answers
from infinitevl.benchmark.work import Costs
from infinitevl.errors import InfiniteVLError
from infinitevl.machine import best_ceilings, clock, machine
from infinitevl.model.fp8 import precision
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration

FARTHEST, SECONDS = 2**20, 50.0
FEWEST = 8  # frames that a run reaches by default
FACTOR = 28  # pixels a side of a frame's token

Progress = Callable[[int], AbstractContextManager[Callable[[int, str], None]]]


@dataclass(frozen=True)
class Wanted:
    """compare: backends of `ops`, and QWEN; tokens: longest context; frames: at each; side: of a frame in pixels
    (None: by the model and the machine); streamed: whether every token is streamed; fp8: whether the model is rounded
    to float8 first.
    """

    compare: Sequence[str] = ()
    tokens: int | None = None
    frames: int | None = None
    side: int | None = None
    streamed: bool = False
    fp8: bool = False


def benchmark(model: InfiniteVLForConditionalGeneration, name: str, wanted: Wanted, progress: Progress) -> Results:
    """Measure the model and what it is compared with, in the same run. progress: of so many turns in all.

    Raises InfiniteVLError where something that it is compared with cannot run it.
    """
    device, side = model.device, wanted.side or usual_side(model)
    lost = quantised(model, random_frames(side)) if wanted.fp8 else None
    top = best_ceilings(device, model.dtype)
    with endless_answers(model):
        subjects = _subjects(model, random_frames(side), wanted)
        plan = _plan(wanted, subjects[0], device)
        with progress(plan.rounds * len(subjects) * len(plan.contexts)) as told:
            found = measure(subjects, plan, device, told)
    top = top.best(best_ceilings(device, model.dtype))
    together = crowds(model, side, top) if device.type == "cuda" else []
    measured, costs = rows(subjects, found, top), Costs.of(model)
    return Results(
        model=name, parameters=sum(costs.sizes.values()), weight_bytes=costs.weight_bytes, machine=machine(device),
        dtype=precision(model), side=side, tokens_per_frame=(side // FACTOR) ** 2,
        window=model.config.text_config.sliding_window, ceilings=top, rows=measured,
        notes=[*notes(top, measured), *_notes_on_peers(wanted.compare, device), *([str(lost)] if lost else [])],
        crowds=together, lost=lost,
    )  # fmt: skip


def usual_side(model: InfiniteVLForConditionalGeneration) -> int:
    """Of the largest square frame that a stream takes by default."""
    pixels = model.stream(fps=None).session.max_pixels
    return max(int(pixels**0.5) // FACTOR, 2) * FACTOR


def _subjects(
    model: InfiniteVLForConditionalGeneration, frames: Sequence[np.ndarray], wanted: Wanted
) -> list[Subject]:
    ours = StreamSubject(OURS, model, frames, really=wanted.streamed)
    subjects: list[Subject] = [ours]
    for peer in dict.fromkeys(wanted.compare):
        if peer == QWEN:
            subjects.append(QwenSubject(model, frames, ours.question_tokens))
            continue
        try:
            with ops.using(peer):
                subjects.append(StreamSubject(peer, model, frames, peer, wanted.streamed))
        except NotImplementedError as error:  # by kernels, of sizes that they cannot take
            raise InfiniteVLError(f"{peer} cannot run this model: {error}") from None
    return subjects


def _plan(wanted: Wanted, ours: Subject, device: torch.device) -> Plan:
    """By default so far, and so many frames, that the model alone takes about a minute."""
    assert isinstance(ours, StreamSubject)
    tokens = wanted.tokens
    if tokens is None:
        ours.back()
        ours.see()
        seconds = median(clock(ours.see, device) for _ in range(3))
        reach = max(int(SECONDS / 2 / seconds), FEWEST) * ours.frame_tokens
        tokens = min(FARTHEST, reach) if ours.really or reach < ours.full else FARTHEST
    contexts = contexts_up_to(tokens, ours.frame_tokens)
    return Plan(contexts, wanted.frames, SECONDS / len(contexts))


def _notes_on_peers(compare: Sequence[str], device: torch.device) -> list[str]:
    told = [
        f"{peer} is what runs here anyway: the two are the same path, measured twice."
        for peer in dict.fromkeys(compare)
        if peer == ("triton" if device.type == "cuda" else "eager")
    ]
    if QWEN in compare:
        told.append(
            f"{QWEN}: transformers' Qwen2.5-VL of the same sizes, random weights, its cache filled with random keys "
            "and values. Its floor is what an ideal static engine of it would take: products, weights and cache."
        )
    return told
