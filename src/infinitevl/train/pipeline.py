"""A recipe from nothing to a model: tokenizer, teacher, student, its stages. Each part is done once and kept."""

import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from infinitevl.data.encode import Encoder
from infinitevl.data.worlds import WorldBatches
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.convert import convert
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.processing import InfiniteVLProcessor, PixelSettings
from infinitevl.train.keeping import load_model, pin, replace
from infinitevl.train.loop import Data, Settings, accelerate, train_stage
from infinitevl.train.qwen import as_qwen
from infinitevl.train.recipes import Recipe
from infinitevl.train.stages import Stage
from infinitevl.train.tokenizer import train_tokenizer

MIN_PIXELS = 28 * 28  # a frame of one token


def run_recipe(recipe: Recipe, out: Path, settings: Settings) -> InfiniteVLForConditionalGeneration:
    """Train all stages of `recipe` under `out`, one folder each, and return the last model. Resumable anywhere.

    InfiniteVLError where `out` holds a run of another recipe.
    """
    device = accelerate().device
    pin(out / "recipe.json", {name: value for name, value in asdict(recipe).items() if name != "stages"})
    first, *rest = recipe.stages
    teacher = run_stage(recipe, first, new_teacher(recipe, out / "processor", device), None, out, settings)
    student = new_student(recipe, teacher, out)
    for stage in rest:
        student = run_stage(recipe, stage, student, teacher if stage.needs_teacher else None, out, settings)
    return student.eval()


def run_stage(
    recipe: Recipe,
    stage: Stage,
    student: InfiniteVLForConditionalGeneration,
    teacher: InfiniteVLForConditionalGeneration | None,
    out: Path,
    settings: Settings,
) -> InfiniteVLForConditionalGeneration:
    """One stage of the recipe, kept in a folder of its name below `out`."""
    return train_stage(stage, student, teacher, _data(recipe, stage, student), out / stage.name, settings)


def _data(recipe: Recipe, stage: Stage, student: InfiniteVLForConditionalGeneration) -> Data:
    encoder = Encoder(
        student.processor, student.config, max_tokens=stage.tokens, min_pixels=MIN_PIXELS, max_pixels=recipe.size**2
    )
    return WorldBatches(
        stage.data,
        encoder,
        rows=stage.rows,
        tokens=stage.tokens,
        steps=stage.steps * stage.accumulate,
        seed=recipe.seed + zlib.crc32(stage.name.encode()),  # every stage has episodes of its own
        size=recipe.size,
    )


def new_teacher(recipe: Recipe, kept: Path, device: torch.device) -> InfiniteVLForConditionalGeneration:
    """A Qwen2.5-VL of random weights: this package's class with full attention everywhere, which equals it.

    kept: where its processor is, or else is put.
    """
    if not kept.is_dir():
        pixels = PixelSettings(min_pixels=MIN_PIXELS, max_pixels=recipe.size**2)
        replace(kept, InfiniteVLProcessor(train_tokenizer(recipe.vocabulary), pixels).save_pretrained)
    processor = InfiniteVLProcessor.from_pretrained(kept)
    layers = ["full_attention"] * recipe.text["num_hidden_layers"]
    config = InfiniteVLConfig(
        text_config={**recipe.text, "vocab_size": len(processor.tokenizer), "layer_types": layers},
        vision_config=recipe.vision,
        **processor.config_ids(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        model: Any = InfiniteVLForConditionalGeneration(config)
    model.processor = processor
    return model.to(device)


def new_student(
    recipe: Recipe, teacher: InfiniteVLForConditionalGeneration, out: Path
) -> InfiniteVLForConditionalGeneration:
    """The teacher as a Qwen2.5-VL folder, converted: out/qwen, out/student."""
    folder = out / "student"
    if not folder.is_dir():
        as_qwen(teacher).save_pretrained(out / "qwen")
        teacher.processor.save_pretrained(out / "qwen")
        convert(out / "qwen", folder, sliding_window=recipe.window, seed=recipe.seed)
    return load_model(folder, teacher)
