"""What a stage computes for a token, counted, and what devices can do."""

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infinitevl.data.encode import Encoder
from infinitevl.data.packing import Batch
from infinitevl.data.worlds import Part, WorldBatches
from infinitevl.machine import KNOWN, device_name
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.train.adapters import add_adapters
from infinitevl.train.recipes import Recipe
from infinitevl.train.stages import Objective, Stage, select

LONGEST_ROW = 8192  # that is counted: masked products of more take much memory, and what is masked away counts


def peak(device: torch.device) -> float | None:
    """FLOP/s of one device in bfloat16; None where they are not known."""
    known = KNOWN.get(device_name(device))
    return None if known is None else known[1]


def flops_per_token(
    recipe: Recipe,
    stage: Stage,
    student: InfiniteVLForConditionalGeneration,
    teacher: InfiniteVLForConditionalGeneration | None,
) -> float:
    """Of a forward and a backward pass over one row of the stage, its frames and the teacher's pass included; of long
    rows, over the first LONGEST_ROW tokens that their shorter episodes fill.

    Both models are on the CPU, since fused kernels are not counted. Products of matrices and convolutions are counted
    as they run, with what is masked away and what the losses compute again for the backward pass; the stage's
    checkpointing adds nothing. Changes which parameters of `student` train, leaves gradients and, for a stage with
    LoRA, adapters: use a copy.
    """
    names = select(student, stage.trains)
    if stage.lora:
        add_adapters(student, names, stage.lora)
    batch = one_row(recipe, stage, student)
    objective = Objective(stage, student, teacher).train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(batch).backward()
    return counter.get_total_flops() / batch.tokens


def countable(stage: Stage) -> bool:
    """Whether its data are episodes, not files, whose samples may be of any size."""
    return all(isinstance(part, Part) for part in stage.data)


def one_row(recipe: Recipe, stage: Stage, student: InfiniteVLForConditionalGeneration) -> Batch:
    """Of a countable stage's episodes."""
    parts: Any = stage.data
    pixels = recipe.size**2
    tokens = min(stage.tokens, LONGEST_ROW)
    encoder = Encoder(student.processor, student.config, max_tokens=tokens, min_pixels=pixels, max_pixels=pixels)
    data = WorldBatches(parts, encoder, rows=1, tokens=tokens, steps=1, seed=recipe.seed, size=recipe.size)
    return data[0]
