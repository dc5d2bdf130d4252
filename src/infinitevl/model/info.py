"""What a checkpoint is and what it will take, from its config.json and its safetensors headers alone."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from rich.console import Group, RenderableType
from rich.table import Table
from safetensors import SafetensorError, safe_open

from infinitevl.errors import InfiniteVLError
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.modeling import OLD_NAMES, InfiniteVLForConditionalGeneration
from infinitevl.model.state import State

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PARTS: tuple[str, ...] = ("vision", "embeddings", "attention layers", "delta layers", "MLPs", "norms")
STATE_PARTS = {"memory": "GDN memory", "tail": "convolution tails", "keys": "rings", "values": "rings"}
UNUSABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
FRAME = 448  # pixels a side of the frame that the working set is estimated for


@dataclass(frozen=True)
class Stored:
    """A tensor on the disk: its name in the file, safetensors' name of its dtype, its shape, its file."""

    name: str
    dtype: str
    shape: torch.Size
    file: Path

    @property
    def nbytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)
        return prod(self.shape) * (int(bits[0]) // 8 if bits else 1)


class Parts(dict[str, int]):
    """An amount for each part of a whole."""

    @property
    def total(self) -> int:
        return sum(self.values())


@dataclass(frozen=True)
class Info:
    """A checkpoint. Names of tensors are the newest form, `model.language_model.layers...`.

    layers: number of layers by type; parameters: elements by PARTS of the model, as config.json implies them;
    weight_bytes: of the tensors found (None: no weights here); state: bytes by part of one new stream (only
    a full_attention layer's part grows); working_bytes: `working_set`, of one stream; missing, unexpected,
    misshapen: how the tensors found differ from what config.json implies.
    """

    model_type: str
    dtype: torch.dtype
    layers: dict[str, int]
    parameters: Parts
    weight_bytes: int | None
    state: Parts
    working_bytes: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()


def describe(checkpoint: Path) -> Info:
    """Describe an InfiniteVL checkpoint folder, with its weights or without.

    Raises InfiniteVLError, one line, for a folder that is not there or not an InfiniteVL checkpoint, for a
    damaged file, and for weights that are not safetensors.
    """
    config = parse_config(InfiniteVLConfig.from_dict, read_config(checkpoint, "infinite_vl"), checkpoint)
    text, stored = config.text_config, read_headers(checkpoint)
    expected = parse_config(expected_shapes, config, checkpoint)
    dtype = _dtype(config, stored)
    both = expected.keys() & stored.keys()
    return Info(
        model_type=config.model_type,
        dtype=dtype,
        layers=dict(Counter(text.layer_types)),
        parameters=_parameters(expected, text.layer_types),
        weight_bytes=sum(tensor.nbytes for tensor in stored.values()) if stored else None,
        state=_state_bytes(State(text, 1, torch.device("meta"), dtype)),
        working_bytes=working_set(config, dtype),
        missing=tuple(name for name in expected if stored and name not in stored),
        unexpected=tuple(name for name in stored if name not in expected),
        misshapen=tuple(name for name in expected if name in both and expected[name] != stored[name].shape),
    )


def memory_estimate(info: Info, streams: int) -> int:
    """Bytes that the model and `streams` streams need: the weights (their size in the checkpoint's dtype
    where they are not here), every stream's state, and a working set for a frame of every stream at once.
    """
    weights = info.weight_bytes
    if weights is None:
        weights = info.parameters.total * info.dtype.itemsize
    return weights + streams * (info.state.total + info.working_bytes)


def working_set(config: InfiniteVLConfig, dtype: torch.dtype) -> int:
    """Bytes alive at the worst moment of a FRAME x FRAME frame's pass: an estimate, for attention that stores
    no scores. (tests/model/test_info.py holds it against what the eager operations allocate.)

    With b bytes an element, P patches of width h (MLP m), T tokens of width H (MLP M), n = heads (2 K + V):
        vision      P b (2 h + max(3 m, 8 h))             two residuals; gate, up, product or q, k, v, ...
        MLP         T b (2 H + 3 M)                       two residuals; gate, up, product
        attention   T b 2 H + (10 T + b 2 kv d) (C + T)   the mask in the making; C ring slots and the chunk
        delta rule  T (b (2 H + 2 n) + 4 (4 n))           q, k, v, convolved or not; four of them in float32
    The largest of the four, plus one token's logits in float32.
    """
    vision, text, b = config.vision_config, config.text_config, dtype.itemsize
    patches = (FRAME // vision.patch_size) ** 2
    tokens = patches // vision.spatial_merge_size**2
    keys = text.sliding_window + text.attention_sinks + tokens
    inner = text.num_linear_heads * (2 * text.linear_head_dim + text.linear_value_dim)
    peaks = (
        patches * b * (2 * vision.hidden_size + max(3 * vision.intermediate_size, 8 * vision.hidden_size)),
        tokens * b * (2 * text.hidden_size + 3 * text.intermediate_size),
        tokens * b * 2 * text.hidden_size + keys * (10 * tokens + 2 * b * text.num_key_value_heads * text.head_dim),
        tokens * (2 * b * (text.hidden_size + inner) + 16 * inner),
    )
    return max(peaks) + 4 * text.vocab_size


def read_config(folder: Path, model_type: str) -> dict[str, Any]:
    """The config.json of a checkpoint folder of this model type. Raises InfiniteVLError."""
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist: give a local checkpoint folder"
        raise InfiniteVLError(f"{folder} {problem}")
    values = read_json(folder / "config.json")
    if values.get("model_type") != model_type:
        raise InfiniteVLError(f"{folder} is not a {model_type} checkpoint, but {values.get('model_type')}")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InfiniteVLError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InfiniteVLError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise InfiniteVLError(f"cannot read {path}: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InfiniteVLError(f"cannot read {path}: not a JSON object")
    return values


def parse_config(make: Callable[[Any], Any], values: Any, folder: Path) -> Any:
    """What `make` makes of a configuration's values. Raises InfiniteVLError where they are no good."""
    try:
        return make(values)
    except (*UNUSABLE, StrictDataclassError) as error:
        raise InfiniteVLError(f"cannot use {folder / 'config.json'}: {one_line(error)}") from None


def expected_shapes(config: InfiniteVLConfig) -> dict[str, torch.Size]:
    """The names and shapes of the tensors of a checkpoint with this configuration, by the model itself."""
    with torch.device("meta"):
        state = InfiniteVLForConditionalGeneration(config).state_dict()
    return {
        name: tensor.shape
        for name, tensor in state.items()
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    }


def read_headers(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint folder under the newest form of their names; empty where it has no weights.

    Raises InfiniteVLError for a shard that is missing, truncated or damaged, and for pickled weights.
    """
    if (folder / SINGLE).exists():
        files = [folder / SINGLE]
    elif (folder / INDEX).exists():
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict):
            raise InfiniteVLError(f"{folder / INDEX} has no weight_map")
        files = [folder / str(name) for name in sorted(set(names.values()))]
    else:
        files = []
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        if pickles:
            raise InfiniteVLError(f"{folder} has pickled weights ({pickles[0]}), refused: use safetensors")
    return {newest_name(tensor.name): tensor for file in files for tensor in _read_header(file)}


def newest_name(name: str) -> str:
    """Names of older checkpoints (`visual.*`, `model.layers.*`) as the model has them."""
    for old, new in OLD_NAMES.items():
        name = re.sub(old, new, name)
    return name


def one_line(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return " ".join(str(strerror or error).split())


def _read_header(file: Path) -> list[Stored]:
    try:
        with safe_open(file, "pt") as tensors:
            slices = [(name, tensors.get_slice(name)) for name in tensors.keys()]  # noqa: SIM118
            return [Stored(name, s.get_dtype(), torch.Size(s.get_shape()), file) for name, s in slices]
    except FileNotFoundError:
        raise InfiniteVLError(f"{file.parent} lacks the shard {file.name}") from None
    except (SafetensorError, OSError) as error:
        raise InfiniteVLError(f"{file} is truncated or damaged: {one_line(error)}") from None


def _dtype(config: InfiniteVLConfig, stored: dict[str, Stored]) -> torch.dtype:
    """Of the configuration, or of the first floating-point tensor."""
    found = (DTYPES[tensor.dtype] for tensor in stored.values() if tensor.dtype in DTYPES)
    return config.dtype or next(found, torch.float32)  # type: ignore[return-value]


def _part(name: str, layer_types: list[str]) -> str:
    """The part of the model that a tensor belongs to."""
    layer = re.search(r"language_model\.layers\.(\d+)\.(self_attn|mlp)\.", name)
    if layer:
        mixer = "delta layers" if layer_types[int(layer[1])] == "linear_attention" else "attention layers"
        return mixer if layer[2] == "self_attn" else "MLPs"
    if name.startswith("model.visual."):
        return "vision"
    return "embeddings" if "embed_tokens" in name or name.startswith("lm_head") else "norms"


def _parameters(shapes: dict[str, torch.Size], layer_types: list[str]) -> Parts:
    totals = Parts(dict.fromkeys(PARTS, 0))
    for name, shape in shapes.items():
        totals[_part(name, layer_types)] += prod(shape)
    return totals


def _state_bytes(state: State) -> Parts:
    totals = Parts(dict.fromkeys((*STATE_PARTS.values(), "counters"), 0))
    for name, tensor in state.tensors().items():
        totals[STATE_PARTS.get(name.split(".")[-1], "counters")] += tensor.nbytes
    return totals


def render(info: Info) -> RenderableType:
    """Tables for a terminal."""
    parameters = {**info.parameters, "in all": info.parameters.total}
    state = {**info.state, "in all": info.state.total}
    kind = {"type": info.model_type, "dtype": str(info.dtype).removeprefix("torch.")}
    different = (
        ("missing", info.missing), ("unexpected", info.unexpected), ("of another shape", info.misshapen)
    )  # fmt: skip
    return Group(
        _table("model", kind | {f"{layer} layers": str(n) for layer, n in info.layers.items()}),
        _table("parameters", {part: f"{n / 1e6:,.1f} M" for part, n in parameters.items()}),
        _table("state of one stream", {part: _size(n) for part, n in state.items()}),
        _table("memory, estimated", _memory(info)),
        *(_table(f"tensors {what}", dict.fromkeys(names, "")) for what, names in different if names),
    )


def _memory(info: Info) -> dict[str, str]:
    return {
        "weights": "not here" if info.weight_bytes is None else _size(info.weight_bytes),
        f"working set, a {FRAME} x {FRAME} frame": _size(info.working_bytes),
        "in all, 1 stream": _size(memory_estimate(info, 1)),
        "in all, 16 streams": _size(memory_estimate(info, 16)),
    }


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, width=60)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _size(n: int) -> str:
    if n >= 2**30:
        return f"{n / 2**30:,.2f} GiB"
    return f"{n / 2**20:,.2f} MiB" if n >= 2**20 else f"{n:,} B"
