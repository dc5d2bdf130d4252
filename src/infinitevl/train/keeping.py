"""What a training leaves on disk, so that it can be killed at any moment and run again."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from infinitevl.errors import InfiniteVLError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration

MODEL, CHECKPOINT, METRICS, CURVES = "model", "checkpoint.pt", "metrics.jsonl", "loss.png"


@dataclass
class Point:
    """One line of metrics.jsonl. tokens: seen since the stage began."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    tokens_per_second: float

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def pin(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or, if they are written there already, InfiniteVLError unless they are the same."""
    now = json.loads(json.dumps(settings))
    if not path.is_file():
        replace(path, lambda partial: partial.write_text(json.dumps(now, indent=2) + "\n"))
    before = json.loads(path.read_text())
    for name in now:
        if before.get(name) != now[name]:
            change = f"{name} {_short(before.get(name))}, not {_short(now[name])}"
            raise InfiniteVLError(f"{path.parent} was begun with {change}: go on with that, delete it, or change out=")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` a file or a folder under another name, then put it in the place of `path`, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_dir():
        shutil.rmtree(partial)
    write(partial)
    os.replace(partial, path)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers and text in dicts and lists."""
    replace(path, lambda partial: torch.save(state, partial))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """None where there is none. InfiniteVLError for a file that is no checkpoint."""
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise InfiniteVLError(f"{path} cannot be read ({type(error).__name__}): delete it to begin anew") from None


@torch.no_grad()
def load_model(folder: Path, like: InfiniteVLForConditionalGeneration) -> InfiniteVLForConditionalGeneration:
    """The model of a folder in float32, on the device of another, whose processor it shares."""
    model: Any = type(like).from_pretrained(folder, dtype=torch.float32)
    for parameter in model.parameters():  # out of the mapped file, where no tensor is aligned as in a fresh model:
        parameter.data = parameter.data.clone()  # matrix products would round in another way, and no run repeat
    model.processor = like.processor
    return model.to(like.device)


def forget_after(metrics: Path, step: int) -> None:
    """Drop the lines after `step`, which a killed run wrote beyond its last checkpoint."""
    kept = [point for point in read_metrics(metrics) if point.step <= step]
    replace(metrics, lambda partial: partial.write_text("".join(point.line() for point in kept)))


def read_metrics(metrics: Path) -> list[Point]:
    """The points of a run; the last line may have been cut off when it was killed."""
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    return [Point(**json.loads(line)) for line in lines if line.endswith("}")]
