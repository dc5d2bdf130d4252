"""Recipes: which models, and which stages on which data. A recipe is a value; variants are made with `replace`."""

from dataclasses import dataclass
from typing import Any

from infinitevl.data.streamworld.draw import UNIT
from infinitevl.data.streamworld.world import TOKEN
from infinitevl.data.worlds import GLANCE, MEMORY, VISUAL, Part
from infinitevl.errors import InfiniteVLError
from infinitevl.train.stages import Stage


@dataclass(frozen=True)
class Recipe:
    """text, vision: fields of the teacher's configuration; window: of the student's attention layers;
    size: side of a StreamWorld frame; vocabulary: of the tokenizer."""

    name: str
    text: dict[str, Any]
    vision: dict[str, Any]
    window: int
    stages: tuple[Stage, ...]
    size: int = 112
    vocabulary: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < UNIT or self.size % TOKEN:
            raise InfiniteVLError(f"size={self.size}: it is a multiple of {TOKEN}, at least {UNIT}")


GLANCES = Part(0.8, frames=(1, 2), questions=12, groups=GLANCE)
MOVES = Part(0.1, frames=(4, 12), questions=12)
MIXED = Part(0.05, frames=(24, 80), questions=32, groups=(*VISUAL, *MEMORY))
TESTS = Part(0.04, frames=(12, 90), questions=8, at_end=True)
TEXT = Part(0.04, questions=16, groups=("text",))
EVERYTHING = (GLANCES, MOVES, MIXED, TESTS, TEXT)
LONG = (
    Part(0.5, frames=(120, 480), questions=96, groups=(*VISUAL, *MEMORY)),
    Part(0.5, frames=(100, 480), questions=16, at_end=True),
)


def nano() -> Recipe:
    """The model in the box: 15 million parameters, window 256."""
    rows, tokens = 16, 1920
    return Recipe(
        name="nano",
        text={
            "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64, "rope_parameters": {"mrope_section": [8, 12, 12]},
        },
        vision={
            "depth": 5, "hidden_size": 256, "intermediate_size": 704, "num_heads": 4, "out_hidden_size": 256,
            "fullatt_block_indexes": [2, 4],
        },
        window=256,
        stages=(
            Stage("teacher", "cross_entropy", "all", EVERYTHING, 4000, rows, tokens, 2e-3, "muon"),
            Stage("layerwise", "layerwise", "delta", EVERYTHING, 150, rows, tokens, 2e-3, "muon"),
            Stage("distillation", "distillation", "delta", EVERYTHING, 300, rows, tokens, 2e-3, "muon"),
            Stage("sft", "cross_entropy", "language", EVERYTHING, 1000, rows, tokens, 1.5e-3, "muon"),
            Stage("long", "cross_entropy", "all", (*LONG, *_scaled(EVERYTHING, 4.0)), 600, 8, 8192, 1e-3, "muon"),
        ),
    )  # fmt: skip


def micro() -> Recipe:
    """Everything of nano in a few minutes on two CPU cores."""
    rows, tokens = 4, 512
    short = (Part(1.0, frames=(1, 2), questions=3),)
    return Recipe(
        name="micro",
        text={
            "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3,
            "num_key_value_heads": 1, "head_dim": 32, "rope_parameters": {"mrope_section": [4, 6, 6]},
        },
        vision={
            "depth": 2, "hidden_size": 96, "intermediate_size": 192, "num_heads": 3, "out_hidden_size": 96,
            "fullatt_block_indexes": [1],
        },
        window=64,
        stages=(
            Stage("teacher", "cross_entropy", "all", short, 300, rows, tokens, 3e-3),
            Stage("layerwise", "layerwise", "delta", short, 60, rows, tokens, 3e-3),
            Stage("distillation", "distillation", "delta", short, 60, rows, tokens, 2e-3),
            Stage("sft", "cross_entropy", "language", short, 60, rows, tokens, 1e-3),
        ),
    )  # fmt: skip


def _scaled(parts: tuple[Part, ...], total: float) -> tuple[Part, ...]:
    """The same mixture with weights that add up to `total`."""
    weight = sum(part.weight for part in parts)
    return tuple(Part(p.weight / weight * total, p.frames, p.questions, p.groups, p.cards, p.at_end) for p in parts)


RECIPES = {"nano": nano, "micro": micro}
