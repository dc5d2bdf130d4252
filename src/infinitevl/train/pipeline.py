"""A recipe from nothing to a model: tokenizer, teacher, student, its stages. Each part is done once and kept."""

import zlib
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.console import Console

from infinitevl.data.encode import Encoder
from infinitevl.data.files import FileBatches, FilePart
from infinitevl.data.skipped import Skipped
from infinitevl.data.worlds import WorldBatches
from infinitevl.errors import InfiniteVLError
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.convert import convert, read_student
from infinitevl.model.loading import load
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.processing import InfiniteVLProcessor, MediaSettings
from infinitevl.train import keeping
from infinitevl.train.keeping import MODEL, load_model, pin
from infinitevl.train.loop import Settings, accelerate, train_stage
from infinitevl.train.qwen import as_qwen
from infinitevl.train.recipes import TEACHER, Recipe
from infinitevl.train.stages import Stage
from infinitevl.train.tokenizer import train_tokenizer

MIN_PIXELS = 28 * 28  # a frame of one token


def run_recipe(recipe: Recipe, out: Path, settings: Settings) -> InfiniteVLForConditionalGeneration:
    """Train all stages of `recipe` under `out`, one folder each, and return the last model. Resumable anywhere.

    InfiniteVLError where something is missing, or `out` holds a run of another recipe.
    """
    check(recipe)
    accelerator = accelerate()
    with accelerator.main_process_first():  # what is kept, it makes; the others find it there
        pin(out / "recipe.json", {name: value for name, value in asdict(recipe).items() if name != "stages"})
        make = given_teacher if recipe.teacher else new_teacher
        teacher = make(recipe, out / (TEACHER if recipe.teacher else "processor"), accelerator.device)
    if not recipe.teacher:
        teacher = run_stage(recipe, recipe.stages[0], teacher, None, out, settings)
    with accelerator.main_process_first():
        student = new_student(recipe, teacher, out)
    for stage in recipe.student_stages:
        student = run_stage(recipe, stage, student, teacher if stage.needs_teacher else None, out, settings)
    return student.eval()


def check(recipe: Recipe) -> None:
    """InfiniteVLError where the recipe lacks a teacher or data, or these cannot be read: at once, not after days."""
    if recipe.teacher:
        read_student(Path(recipe.teacher))
    elif recipe.stages[0].name != TEACHER:
        raise InfiniteVLError(f"{recipe.name} needs teacher=FOLDER, a Qwen2.5-VL checkpoint")
    stages = recipe.student_stages if recipe.teacher else recipe.stages
    parts = [part for stage in stages for part in _data_of(stage)]
    for part in {replace(part, weight=1.0): None for part in parts if isinstance(part, FilePart)}:
        part.open()


def _data_of(stage: Stage) -> tuple[Any, ...]:
    if not stage.data:
        raise InfiniteVLError(f"{stage.name} needs {stage.name}.data=FILES, such as a.json or 4*a.json,1*b.jsonl")
    return stage.data


def run_stage(
    recipe: Recipe,
    stage: Stage,
    student: InfiniteVLForConditionalGeneration,
    teacher: InfiniteVLForConditionalGeneration | None,
    out: Path,
    settings: Settings,
) -> InfiniteVLForConditionalGeneration:
    """One stage of the recipe, kept in a folder of its name below `out`."""
    data = _data(recipe, stage, student, out / stage.name)
    trained = train_stage(stage, student, teacher, data, out / stage.name, settings)
    if isinstance(data, FileBatches):
        _tell(data.skipped)
    return trained


def _data(
    recipe: Recipe, stage: Stage, student: InfiniteVLForConditionalGeneration, out: Path
) -> WorldBatches | FileBatches:
    files = tuple(replace(part, fps=stage.fps) for part in _data_of(stage) if isinstance(part, FilePart))
    size: dict[str, Any] = {
        "rows": stage.rows, "tokens": stage.tokens, "steps": stage.steps * stage.accumulate,
        "seed": recipe.seed + zlib.crc32(stage.name.encode()),  # every stage has samples of its own
    }  # fmt: skip
    bounds: dict[str, Any] = {"max_tokens": stage.tokens, "min_pixels": MIN_PIXELS}
    if files:
        encoder = Encoder(
            student.processor, student.config, max_pixels=stage.max_pixels, max_frames=stage.max_frames, **bounds
        )
        return FileBatches(files, encoder, skipped=Skipped(out / "skipped.jsonl"), **size)
    encoder = Encoder(student.processor, student.config, max_pixels=recipe.size**2, **bounds)
    parts: Any = stage.data
    return WorldBatches(parts, encoder, size=recipe.size, **size)


def _tell(skipped: Skipped) -> None:
    """In one line, what all processes skipped."""
    skipped.counts = sum(gather_object([skipped.counts]), Counter())
    if skipped.counts:
        Console(stderr=True, highlight=False).print(str(skipped), markup=False, soft_wrap=True)


def given_teacher(recipe: Recipe, kept: Path, device: torch.device) -> InfiniteVLForConditionalGeneration:
    """The Qwen2.5-VL of a folder as this package's class, kept in kept/model."""
    if not (kept / MODEL).is_dir():
        layers = read_student(Path(recipe.teacher)).text_config.num_hidden_layers
        convert(Path(recipe.teacher), kept / MODEL, layer_types=["full_attention"] * layers)
    return load(kept / MODEL, device=device, dtype=torch.float32)


def new_teacher(recipe: Recipe, kept: Path, device: torch.device) -> InfiniteVLForConditionalGeneration:
    """A Qwen2.5-VL of random weights: this package's class with full attention everywhere, which equals it.

    kept: where its processor is, or else is put.
    """
    if not kept.is_dir():
        media = MediaSettings(MIN_PIXELS, recipe.size**2, max_video_seconds=recipe.video_seconds)
        keeping.replace(kept, InfiniteVLProcessor(train_tokenizer(recipe.vocabulary), media).save_pretrained)
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
    """The teacher converted, from its folder or, of a teacher trained here, out/qwen: out/student."""
    folder = out / "student"
    if not folder.is_dir():
        if not recipe.teacher:
            as_qwen(teacher).save_pretrained(out / "qwen")
            teacher.processor.save_pretrained(out / "qwen")
        source = Path(recipe.teacher) if recipe.teacher else out / "qwen"
        convert(source, folder, sliding_window=recipe.window, seed=recipe.seed)
    return load_model(folder, teacher)
