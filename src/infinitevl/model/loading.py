"""Load a model with its processor, and make transformers' Auto classes know it."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

from infinitevl.errors import InfiniteVLError
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.fp8 import NAMES, quantise
from infinitevl.model.linear import join
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.processing import InfiniteVLProcessor

BOX = Path(__file__).parents[1] / "box"  # package data


def register() -> None:
    """Let AutoConfig, AutoModelForImageTextToText and AutoProcessor find the model by its `model_type`."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    AutoConfig.register(InfiniteVLConfig.model_type, InfiniteVLConfig, exist_ok=True)
    AutoModelForImageTextToText.register(InfiniteVLConfig, InfiniteVLForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(InfiniteVLConfig, InfiniteVLProcessor, exist_ok=True)


def box() -> Path:
    """The folder of the model in the box, trained on StreamWorld. InfiniteVLError where it was not packed."""
    if not (BOX / "config.json").is_file():
        raise InfiniteVLError("there is no model in the box here: give a folder, or an id such as hustvl/InfiniteVL")
    return BOX


def load(
    name: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> InfiniteVLForConditionalGeneration:
    """A model ready to stream, with its processor as `model.processor`.

    name: a folder, or an id on the Hugging Face hub; None is the model in the box. device: a GPU where there is
    one. dtype: the checkpoint's on a GPU, float32 on a CPU; "fp8": bfloat16 with the weights of linear maps in float8
    (`fp8.quantise`), for inference alone. Raises InfiniteVLError, one line, where that fails.
    """
    name = box() if name is None else name
    register()
    chosen = parse_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = torch.float32 if chosen.type == "cpu" else "auto"
    rounded = dtype in NAMES
    dtype = torch.bfloat16 if rounded else dtype
    _check_place(str(name))
    try:
        _check_type(name)
        processor = InfiniteVLProcessor.from_pretrained(name)
        loaded: Any = InfiniteVLForConditionalGeneration.from_pretrained(
            str(name), dtype=parse_dtype(dtype), output_loading_info=True, ignore_mismatched_sizes=True
        )
        model, report = loaded
        _check_complete(name, report)
        model = model.to(chosen).eval()
        if rounded:
            quantise(model)
        elif chosen.type == "cuda":
            join(model)
    except InfiniteVLError:
        raise
    except Exception as error:  # bad files make transformers raise many kinds; the user needs the reason, once
        raise InfiniteVLError(f"cannot load {name}: {_first_line(error)}") from error
    model.processor = processor
    return model


def parse_device(device: str | torch.device) -> torch.device:
    """Raises InfiniteVLError for a device that is not here."""
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InfiniteVLError(f"cannot use the device {str(device)!r}: {_first_line(error)}") from None
    return chosen


def _check_place(name: str) -> None:
    """Checked here, so that a mistyped path is not looked for on the hub, nor a mistyped id many times over."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InfiniteVLError(f"{folder} has no config.json: it is not a checkpoint")
        if not any(folder.glob("*.safetensors")):
            raise InfiniteVLError(f"{folder} has no .safetensors weights (other formats are not read)")
    elif folder.exists() or name.startswith((".", "/", "~")) or len(folder.parts) != 2:
        raise InfiniteVLError(f"no such checkpoint folder: {folder}")
    else:
        _check_hub(name)


def _check_hub(name: str) -> None:
    """One quick look, as transformers would try for minutes, file by file, where there is no network."""
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except Exception as error:
        reason = _first_line(error)
        raise InfiniteVLError(f"no folder {name} here, and none to be had from the hub ({reason})") from error


def _check_type(name: str | Path) -> None:
    kind = InfiniteVLConfig.get_config_dict(str(name))[0].get("model_type")
    if kind == "qwen2_5_vl":
        raise InfiniteVLError(f"{name} is a Qwen2.5-VL checkpoint: `infinitevl convert` makes an InfiniteVL of it")
    if kind != InfiniteVLConfig.model_type:
        raise InfiniteVLError(f"{name} is not an infinite_vl checkpoint, but {kind}")


def _check_complete(name: str | Path, report: dict[str, Any]) -> None:
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise InfiniteVLError(f"{name} lacks {len(missing)} tensors, {missing[0]} among them")
    for tensor, found, expected in sorted(report.get("mismatched_keys", ())):
        raise InfiniteVLError(f"{name} has {tensor} of shape {list(found)}, not {list(expected)}")


def parse_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """A dtype by its name, or "auto". Raises InfiniteVLError."""
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, {"fp32": "float32", "bf16": "bfloat16", "fp64": "float64"}.get(dtype, dtype), None)
    if not isinstance(found, torch.dtype):
        raise InfiniteVLError(f"unknown dtype {dtype!r}: use fp8, bfloat16, float32 or float64")
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
