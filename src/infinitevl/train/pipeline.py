"""A recipe from nothing to a model: tokenizer, teacher, student, its stages. Each part is done once and kept."""

from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from infinitevl.data.encode import Encoder
from infinitevl.data.worlds import WorldBatches
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.convert import convert
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.processing import (
    InfiniteVLProcessor,
    PixelSettings,
)
from infinitevl.train.loop import Settings, train_stage
from infinitevl.train.recipes import Recipe
from infinitevl.train.stages import Stage
from infinitevl.train.tokenizer import train_tokenizer


def run_recipe(recipe: Recipe, out: Path, settings: Settings) -> InfiniteVLForConditionalGeneration:
    """Train all stages of `recipe` under `out`, one folder each, and return the last model. Resumable anywhere."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first, *rest = recipe.stages
    teacher = _stage(recipe, first, new_teacher(recipe), None, out, settings).to(device)
    student = new_student(recipe, teacher, out)
    for stage in rest:
        student = _stage(recipe, stage, student, teacher if stage.needs_teacher else None, out, settings)
    return student.eval()


def _stage(
    recipe: Recipe,
    stage: Stage,
    student: InfiniteVLForConditionalGeneration,
    teacher: InfiniteVLForConditionalGeneration | None,
    out: Path,
    settings: Settings,
) -> InfiniteVLForConditionalGeneration:
    encoder = Encoder(
        student.processor, student.config, max_tokens=stage.tokens, min_pixels=784, max_pixels=recipe.size**2
    )
    data = WorldBatches(
        stage.data,
        encoder,
        rows=stage.rows,
        tokens=stage.tokens,
        steps=stage.steps,
        seed=recipe.seed,
        size=recipe.size,
    )
    return train_stage(stage, student, teacher, data, out / stage.name, settings)


def new_teacher(recipe: Recipe) -> InfiniteVLForConditionalGeneration:
    """A Qwen2.5-VL of random weights: this package's class with full attention everywhere, which equals it."""
    tokenizer = train_tokenizer(recipe.vocabulary)
    processor = InfiniteVLProcessor(tokenizer, PixelSettings(min_pixels=784, max_pixels=recipe.size**2))
    layers = recipe.text["num_hidden_layers"]
    config = InfiniteVLConfig(
        text_config={**recipe.text, "vocab_size": len(tokenizer), "layer_types": ["full_attention"] * layers},
        vision_config=recipe.vision,
        **processor.config_ids(),
    )
    torch.manual_seed(recipe.seed)
    model = InfiniteVLForConditionalGeneration(config)
    model.processor = processor
    return model


def new_student(
    recipe: Recipe, teacher: InfiniteVLForConditionalGeneration, out: Path
) -> InfiniteVLForConditionalGeneration:
    """The teacher as a Qwen2.5-VL folder, converted: out/qwen, out/student."""
    folder = out / "student"
    if not (folder / "config.json").is_file():
        as_qwen(teacher).save_pretrained(out / "qwen")
        teacher.processor.save_pretrained(out / "qwen")
        convert(out / "qwen", folder, sliding_window=recipe.window, seed=recipe.seed)
    student = InfiniteVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    student.processor = teacher.processor
    return student


def as_qwen(teacher: InfiniteVLForConditionalGeneration) -> Qwen2_5_VLForConditionalGeneration:
    """The same weights in transformers' own class. ValueError for a model with other layers than full attention."""
    text = teacher.config.text_config.to_dict()
    if set(text["layer_types"]) != {"full_attention"}:
        raise ValueError("only a model of full attention layers is a Qwen2.5-VL")
    shared = (
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
        "tie_word_embeddings",
    )
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters", "max_position_embeddings", "eos_token_id",
    )  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config={name: text[name] for name in names},
        vision_config={k: v for k, v in teacher.config.vision_config.to_dict().items() if k != "model_type"},
        **{name: getattr(teacher.config, name) for name in shared},
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.load_state_dict({name: tensor.cpu() for name, tensor in teacher.state_dict().items()})
    return model.to(torch.float32)
