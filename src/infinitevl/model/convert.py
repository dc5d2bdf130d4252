"""From a Qwen2.5-VL checkpoint to an InfiniteVL student: a plan of every tensor, then a stream through it.

The vision tower, embeddings, MLPs, norms and attention layers 0, 4, 8, ... are the teacher's. Where a layer
becomes Gated DeltaNet, the teacher's projections W seed it, head by head:

    q_proj = W_q              k_proj = W_k, repeated for every query head that shares it
    v_proj = [W_v; W_v]       o_proj = [W_o, W_o] / 2, W_v repeated like W_k (expand_v = 2)

so that o_proj(v_proj(x)) is the teacher's W_o W_v x. The convolutions start as the identity: it acts at once.
The teacher's biases on q, k and v have no place in Gated DeltaNet and are dropped there. A student that is not
`seeded` begins with Gated DeltaNet layers of random weights instead, for comparison.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig

from infinitevl.errors import InfiniteVLError
from infinitevl.model.configuration import InfiniteVLConfig, InfiniteVLTextConfig, InfiniteVLVisionConfig
from infinitevl.model.info import (
    DTYPES,
    INDEX,
    SINGLE,
    Stored,
    expected_shapes,
    one_line,
    parse_config,
    read_config,
    read_headers,
)
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration, init_decay

EMBEDDINGS = "model.language_model.embed_tokens.weight"
EXPAND_V = 2
CONVOLUTION_NOISE = 0.02
TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_parameters", "max_position_embeddings",
    "initializer_range",
)  # fmt: skip
TOKEN_FIELDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "processor_config.json", "chat_template.json", "chat_template.jinja", "generation_config.json", "LICENSE",
)  # fmt: skip

Progress = Callable[[int, int], None]  # bytes done, bytes in all; called after every tensor


@dataclass(frozen=True)
class Recipe:
    """How a tensor of the student comes to be: `make` of the teacher's tensor `source` or, where there is
    none, `make` of float32 zeros of this shape, drawing from torch's generator.
    """

    shape: torch.Size
    source: str | None
    make: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """A recipe and where its teacher's tensor lies; dtype: what the student stores."""

    name: str
    recipe: Recipe
    stored: Stored | None
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.recipe.shape) * self.dtype.itemsize


def convert(
    source: Path,
    out: Path,
    *,
    sliding_window: int = 8192,
    layer_types: Sequence[str] | None = None,
    linear_rule: str = "gated_delta",
    seeded: bool = True,
    seed: int = 0,
    max_shard_bytes: int = 2 << 30,
    progress: Progress | None = None,
) -> InfiniteVLConfig:
    """Write an InfiniteVL student of the Qwen2.5-VL checkpoint folder `source` as the folder `out`.

    layer_types: as in InfiniteVLTextConfig (None: every fourth layer keeps attention; with full_attention alone,
    the teacher itself); linear_rule: as there; seeded: whether the teacher seeds the Gated DeltaNet layers;
    seed: of what the teacher does not give, the same however source and output are sharded; max_shard_bytes: size
    of the files (a larger tensor has its own) and, with one more tensor, of what is held in memory. Tensors keep
    their dtypes; `out` appears when it is complete, or not at all. Raises InfiniteVLError, one line.
    """
    source, out = Path(source), Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InfiniteVLError(f"{out} exists and is not empty")
    config = read_student(source, sliding_window=sliding_window, layer_types=layer_types, linear_rule=linear_rule)
    jobs = _jobs(source, parse_config(partial(plan, seeded=seeded), config, source))
    config.dtype = next(job.dtype for job in jobs if job.name == EMBEDDINGS)
    with _appearing(out) as folder:
        _write_weights(jobs, folder, max_shard_bytes, seed, progress)
        for name in COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        config.save_pretrained(folder)
    return config


def read_student(source: Path, **options: Any) -> InfiniteVLConfig:
    """The student's configuration for a teacher's folder; options: as of `student_config`."""
    values = read_config(source, Qwen2_5_VLConfig.model_type)
    if values.get("quantization_config"):
        raise InfiniteVLError(f"{source} is quantized: convert the original checkpoint instead")
    teacher = parse_config(Qwen2_5_VLConfig.from_dict, values, source)
    return parse_config(partial(student_config, **options), teacher, source)


def student_config(
    teacher: Qwen2_5_VLConfig,
    *,
    sliding_window: int = 8192,
    layer_types: Sequence[str] | None = None,
    linear_rule: str = "gated_delta",
) -> InfiniteVLConfig:
    """The teacher's sizes, and its heads and their width for Gated DeltaNet. Raises ValueError."""
    text: Any = teacher.text_config
    vision = teacher.vision_config
    heads = text.num_attention_heads
    return InfiniteVLConfig(
        text_config=InfiniteVLTextConfig(
            **{name: getattr(text, name) for name in TEXT_FIELDS},
            num_linear_heads=heads,
            linear_head_dim=text.hidden_size // heads,
            expand_v=EXPAND_V,
            sliding_window=sliding_window,
            layer_types=None if layer_types is None else list(layer_types),
            linear_rule=linear_rule,
        ),
        vision_config={name: getattr(vision, name) for name in InfiniteVLVisionConfig.__annotations__},
        **{name: getattr(teacher, name) for name in TOKEN_FIELDS},
        **{name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        tie_word_embeddings=teacher.tie_word_embeddings,
        architectures=[InfiniteVLForConditionalGeneration.__name__],
    )


def plan(config: InfiniteVLConfig, seeded: bool = True) -> dict[str, Recipe]:
    """The recipe of every tensor of the student, over the names of the teacher in their newest form."""
    seeds, recipes = _delta_seeds(config.text_config, seeded), {}
    for name, shape in expected_shapes(config).items():
        prefix, mixer, tensor = name.partition(".self_attn.")
        if mixer and config.text_config.layer_types[int(prefix.split(".")[-1])] == "linear_attention":
            inherited, make = seeds[tensor]
            recipes[name] = Recipe(shape, name if inherited else None, make)
        else:
            recipes[name] = Recipe(shape, name, torch.clone)
    return recipes


def _delta_seeds(text: InfiniteVLTextConfig, seeded: bool) -> dict[str, tuple[bool, Callable[[Tensor], Tensor]]]:
    """For every tensor of a Gated DeltaNet layer: whether the teacher's of that name seeds it, and how."""
    normal = partial(nn.init.normal_, std=text.initializer_range)
    return {
        **(_inherited(text) if seeded else _random(normal)),
        "a_proj.weight": (False, normal),
        "b_proj.weight": (False, normal),
        "g_proj.weight": (False, normal),
        "A_log": (False, lambda x: _decay(x, x.new_empty(0), x)),
        "dt_bias": (False, lambda x: _decay(x.new_empty(0), x, x)),
        "o_norm.weight": (False, torch.ones_like),
    }


def _inherited(text: InfiniteVLTextConfig) -> dict[str, tuple[bool, Callable[[Tensor], Tensor]]]:
    heads, width = text.num_attention_heads, text.head_dim or 0
    keys = partial(_ungroup, heads=heads, width=width)
    return {
        "q_proj.weight": (True, torch.clone),
        "k_proj.weight": (True, keys),
        "v_proj.weight": (True, lambda w: _repeat(keys(w), 0, heads)),
        "o_proj.weight": (True, lambda w: _repeat(w, 1, heads) / EXPAND_V),
        **{f"{x}_conv1d.weight": (False, _identity) for x in "qkv"},
    }


def _random(normal: Callable[[Tensor], Tensor]) -> dict[str, tuple[bool, Callable[[Tensor], Tensor]]]:
    """As a new model has them."""
    convolution = partial(nn.init.kaiming_uniform_, a=math.sqrt(5))
    return {
        **{f"{x}_proj.weight": (False, normal) for x in "qkvo"},
        **{f"{x}_conv1d.weight": (False, convolution) for x in "qkv"},
    }


def _ungroup(w: Tensor, heads: int, width: int) -> Tensor:
    """[kv heads * width, hidden] -> [heads * width, hidden]: every query head its own copy of its group's."""
    groups = w.unflatten(0, (-1, width))
    return groups.repeat_interleave(heads // groups.shape[0], 0).flatten(0, 1)


def _repeat(w: Tensor, dim: int, heads: int) -> Tensor:
    """Each head's rows (dim 0) or columns (dim 1) EXPAND_V times, one copy after the other."""
    return torch.cat([w.unflatten(dim, (heads, -1))] * EXPAND_V, dim + 1).flatten(dim, dim + 1)


def _identity(taps: Tensor) -> Tensor:
    """A causal convolution that passes its input on; noise, so that the taps of equal channels differ."""
    nn.init.normal_(taps, std=CONVOLUTION_NOISE)
    taps[..., -1] += 1
    return taps


def _decay(a_log: Tensor, dt_bias: Tensor, wanted: Tensor) -> Tensor:
    init_decay(a_log, dt_bias)
    return wanted


def _jobs(source: Path, recipes: dict[str, Recipe]) -> list[Job]:
    """The plan over the tensors that lie in `source`, all there and of the right shapes."""
    stored = read_headers(source)
    if not stored:
        raise InfiniteVLError(f"{source} has no {SINGLE} and no {INDEX}")
    missing = [r.source for r in recipes.values() if r.source and r.source not in stored]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InfiniteVLError(f"{source} lacks {missing[0]}{others}")
    dtype = _float(stored[EMBEDDINGS])
    return [_job(name, recipe, stored, dtype) for name, recipe in recipes.items()]


def _job(name: str, recipe: Recipe, stored: dict[str, Stored], dtype: torch.dtype) -> Job:
    if recipe.source is None:
        return Job(name, recipe, None, dtype)
    tensor = stored[recipe.source]
    if not _makes(recipe, tensor.shape):
        what = f"{tensor.name} of shape {list(tensor.shape)}"
        raise InfiniteVLError(f"{tensor.file} holds {what}, which does not go with config.json")
    return Job(name, recipe, tensor, _float(tensor))


def _float(tensor: Stored) -> torch.dtype:
    if tensor.dtype not in DTYPES:
        raise InfiniteVLError(f"{tensor.file} holds {tensor.name} as {tensor.dtype}, not one of {', '.join(DTYPES)}")
    return DTYPES[tensor.dtype]


def _makes(recipe: Recipe, shape: torch.Size) -> bool:
    """Whether a teacher's tensor of this shape makes one of the student's."""
    try:
        return recipe.make(torch.empty(shape, device="meta")).shape == recipe.shape
    except (RuntimeError, IndexError):
        return False


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end, or is gone after a failure."""
    folder = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.replace(out)
    except (OSError, SafetensorError) as error:
        raise InfiniteVLError(f"cannot write {out}: {one_line(error)}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_weights(jobs: list[Job], folder: Path, limit: int, seed: int, progress: Progress | None) -> None:
    """One file, or shards and their index."""
    shards, total, done = _shards(jobs, limit), sum(job.nbytes for job in jobs), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors: dict[str, Tensor] = {}
        for job in shard:
            tensors[job.name], weight_map[job.name] = _make(job, seed), file
            done += job.nbytes
            if progress is not None:
                progress(done, total)
        save_file(tensors, folder / file, {"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(jobs: list[Job], limit: int) -> list[list[Job]]:
    """The jobs in order, each shard of at most `limit` bytes or of one tensor."""
    shards: list[list[Job]] = []
    size = 0
    for job in jobs:
        if not shards or size + job.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(job)
        size += job.nbytes
    return shards


@torch.no_grad()
def _make(job: Job, seed: int) -> Tensor:
    if job.stored is not None:
        return job.recipe.make(_read(job.stored)).contiguous()
    digest = hashlib.sha256(f"{seed} {job.name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
        return job.recipe.make(torch.zeros(job.recipe.shape)).to(job.dtype)


def _read(tensor: Stored) -> Tensor:
    """The file is opened for one tensor only, so that its mapped pages do not pile up in memory."""
    try:
        with safe_open(tensor.file, "pt") as file:
            return file.get_tensor(tensor.name)
    except (SafetensorError, OSError) as error:
        raise InfiniteVLError(f"cannot read {tensor.name} from {tensor.file}: {one_line(error)}") from None
