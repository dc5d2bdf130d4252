"""Recipes: which models, and which stages on which data. A recipe is a value; variants are made with `replace`."""

from dataclasses import dataclass, replace
from typing import Any

from infinitevl.data.streamworld.draw import UNIT
from infinitevl.data.streamworld.episodes import FPS
from infinitevl.data.streamworld.world import TOKEN
from infinitevl.data.worlds import GLANCE, MEMORY, MOST_CARDS, VISUAL, Part
from infinitevl.errors import InfiniteVLError
from infinitevl.train.stages import Stage

TEACHER = "teacher"  # the stage that trains it


@dataclass(frozen=True)
class Recipe:
    """text, vision: fields of the teacher's configuration; window: of the student's attention layers;
    size: side of a StreamWorld frame; video_seconds: after which a stream's video ends, see MediaSettings;
    vocabulary: of the tokenizer. teacher: a folder of a Qwen2.5-VL, which is then the teacher: there is no teacher
    stage, and nothing else here describes it."""

    name: str
    text: dict[str, Any]
    vision: dict[str, Any]
    window: int
    stages: tuple[Stage, ...]
    size: int = 112
    video_seconds: float | None = None
    vocabulary: int = 1024
    seed: int = 0
    teacher: str = ""

    def __post_init__(self) -> None:
        if self.size < UNIT or self.size % TOKEN:
            raise InfiniteVLError(f"size={self.size}: it is a multiple of {TOKEN}, at least {UNIT}")

    @property
    def student_stages(self) -> tuple[Stage, ...]:
        """Without that of the teacher."""
        return tuple(stage for stage in self.stages if stage.name != TEACHER)


# Weights are per episode: the share of the tokens, in percent, over the tokens of an episode (mean of 1,000).
# Two cards come first: which value belongs to which key is learnt of two, hardly of many at once (docs/log.md).
GLANCES = Part(28 / 171, frames=(1, 2), questions=12, groups=GLANCE)  # too short for cards
CARDS = Part(15 / 193, frames=(2, 3), questions=8, groups=("describe", "read"), cards=1)
MOVES = Part(28 / 333, "clip", frames=(5, 16), questions=8, groups=("move", "all_ways", "all_spots"))
PAIRS = Part(25 / 199, "test", frames=(6, 10), questions=2, cards=2, during=(0.0, 0.4))
BINDINGS = Part(25 / 466, "test", frames=(8, 32), questions=MOST_CARDS, during=(0.4, 1.0))
MIXED = Part(6 / 1431, frames=(24, 80), questions=32, groups=(*VISUAL, *MEMORY))
TESTS = Part(12 / 1031, "test", frames=(12, 90), questions=MOST_CARDS, rebound=0.5)
TEXT = Part(2 / 465, "text", questions=16)
EVERYTHING = (GLANCES, CARDS, MOVES, PAIRS, BINDINGS, MIXED, TESTS, TEXT)
EVERY_KIND = (*VISUAL, "card", "card", "updated", *MEMORY)
LONG = (
    Part(0.3, "endless", frames=(300, 1500), questions=8, groups=EVERY_KIND),
    Part(0.2, frames=(120, 330), questions=96, groups=EVERY_KIND),
    Part(0.3, "test", frames=(48, 240), questions=MOST_CARDS, rebound=0.5),
    Part(0.2, "test", frames=(240, 480), questions=MOST_CARDS, rebound=0.5),
)


def _scaled(parts: tuple[Part, ...], total: float) -> tuple[Part, ...]:
    """The same mixture with weights that add up to `total`."""
    weight = sum(part.weight for part in parts)
    return tuple(replace(part, weight=part.weight / weight * total) for part in parts)


def nano() -> Recipe:
    """14 million parameters, window 256: 440 million tokens. The model in the box took more steps, see its card."""
    rows, tokens = 48, 1920
    return Recipe(
        name="nano",
        text={
            "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64,
            # Angles that tell frames (1.0 to 0.6), rows (0.4 to 0.2) and columns (from 0.2) apart in so few pairs.
            "rope_parameters": {"mrope_section": [3, 3, 26], "rope_theta": 1e4},
        },
        vision={
            "depth": 5, "hidden_size": 256, "intermediate_size": 704, "num_heads": 4, "out_hidden_size": 256,
            "fullatt_block_indexes": [2, 4], "tokens_per_second": round(FPS),
        },
        window=256,
        video_seconds=5.0,
        stages=(
            Stage(TEACHER, "cross_entropy", "all", EVERYTHING, 2800, rows, tokens, 2e-3, "muon"),
            Stage("layerwise", "layerwise", "delta", EVERYTHING, 100, rows, tokens, 2e-3, "muon"),
            Stage("distillation", "distillation", "delta", EVERYTHING, 800, rows, tokens, 2e-3, "muon"),
            Stage("sft", "cross_entropy", "language", EVERYTHING, 400, rows, tokens, 1.5e-3, "muon"),
            Stage("long", "cross_entropy", "all", (*LONG, *_scaled(EVERYTHING, 4.0)), 500, 4, 32_768, 1e-3, "muon"),
        ),
    )  # fmt: skip


def micro() -> Recipe:
    """Every stage of nano in minutes on two CPU cores: it learns to handle words, and to see colours."""
    rows, tokens = 4, 512
    words = Part(0.4, "text", questions=8)
    short = (words, Part(0.6, frames=(1, 2), questions=8, groups=("colour", "colour", "colour", "see")))
    memory = Part(1.0, "test", frames=(16, 48), questions=4, cards=2)
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
            Stage(TEACHER, "cross_entropy", "all", short, 750, rows, tokens, 5e-3, "muon"),
            Stage("layerwise", "layerwise", "delta", short, 40, rows, tokens, 5e-3, "muon"),
            Stage("distillation", "distillation", "delta", short, 240, rows, tokens, 8e-3, "muon"),
            Stage("sft", "cross_entropy", "language", short, 100, rows, tokens, 3e-3, "muon"),
            Stage("long", "cross_entropy", "all", (memory, *_scaled(short, 4.0)), 40, 2, 1024, 1e-3, "muon"),
        ),
    )  # fmt: skip


def four_b() -> Recipe:
    """The paper's, from Qwen2.5-VL-3B: the teacher and every stage's data are to be given.

    A batch of the paper is rows x accumulate, such as one GPU can do: with more, set more rows and accumulate less.
    The paper's numbers of samples, a row each, are the steps; those of the long stage and its rank are not told.
    """
    small: dict[str, Any] = {"max_pixels": 512 * 512, "checkpointing": True}
    large: dict[str, Any] = {"max_pixels": 1344 * 1344, "checkpointing": True}
    frames: dict[str, Any] = {"max_pixels": 256 * TOKEN**2, "fps": 10.0, "max_frames": 224, "checkpointing": True}
    return Recipe(
        name="4b",
        text={
            "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "head_dim": 128, "rope_parameters": {"mrope_section": [16, 24, 24]},
        },
        vision={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        window=8192,
        stages=(
            Stage("layerwise", "layerwise", "delta", (), 15_625, 2, 8192, 2e-4, accumulate=32, **small),
            Stage("distillation", "distillation", "delta", (), 15_625, 2, 8192, 2e-4, accumulate=32, **small),
            Stage("sft", "cross_entropy", "language", (), 31_250, 2, 8192, 5e-5, accumulate=128, **large),
            Stage("long", "cross_entropy", "language", (), 4000, 1, 32_768, 2e-5, accumulate=64, lora=64, **frames),
        ),
    )  # fmt: skip


RECIPES = {"nano": nano, "micro": micro, "4b": four_b}
