"""Load a model with its processor, and make transformers' Auto classes know it."""

from pathlib import Path
from typing import Any

import torch

from infinitevl.errors import InfiniteVLError
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.processing import InfiniteVLProcessor


def register() -> None:
    """Let AutoConfig, AutoModelForImageTextToText and AutoProcessor find the model by its `model_type`."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    AutoConfig.register(InfiniteVLConfig.model_type, InfiniteVLConfig, exist_ok=True)
    AutoModelForImageTextToText.register(InfiniteVLConfig, InfiniteVLForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(InfiniteVLConfig, InfiniteVLProcessor, exist_ok=True)


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> InfiniteVLForConditionalGeneration:
    """A model ready to stream, with its processor as `model.processor`.

    name: a folder, or an id on the Hugging Face hub. device: a GPU where there is one. dtype: the checkpoint's on
    a GPU, float32 on a CPU. Raises InfiniteVLError, one line, for a checkpoint that cannot be loaded.
    """
    register()
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = torch.float32 if chosen.type == "cpu" else "auto"
    _check_folder(Path(name))
    try:
        processor = InfiniteVLProcessor.from_pretrained(name)
        model, report = InfiniteVLForConditionalGeneration.from_pretrained(
            str(name), dtype=_dtype(dtype), output_loading_info=True
        )
    except InfiniteVLError:
        raise
    except (
        Exception
    ) as error:  # transformers raises many kinds for bad files; the user needs the reason, once
        raise InfiniteVLError(f"cannot load {name}: {_first_line(error)}") from error
    _check_complete(name, report)
    model.processor = processor
    return model.to(chosen).eval()


def _check_folder(folder: Path) -> None:
    """A folder is checked here, so that a mistyped path is not looked for on the hub."""
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InfiniteVLError(f"{folder} has no config.json: it is not a checkpoint")
        if not any(folder.glob("*.safetensors")):
            raise InfiniteVLError(f"{folder} has no .safetensors weights (other formats are not read)")
    elif folder.exists() or folder.is_absolute() or len(folder.parts) != 2 or folder.parts[0] in (".", ".."):
        raise InfiniteVLError(f"no such checkpoint folder: {folder}")


def _check_complete(name: str | Path, report: dict[str, Any]) -> None:
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise InfiniteVLError(f"{name} lacks {len(missing)} tensors, {missing[0]} among them")
    mismatched = sorted(str(key) for key in report.get("mismatched_keys", ()))
    if mismatched:
        raise InfiniteVLError(f"{name} has tensors of the wrong shape: {mismatched[0]}")


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, {"fp32": "float32", "bf16": "bfloat16", "fp64": "float64"}.get(dtype, dtype), None)
    if not isinstance(found, torch.dtype):
        raise InfiniteVLError(f"unknown dtype {dtype!r}: use float32, bfloat16 or float64")
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
