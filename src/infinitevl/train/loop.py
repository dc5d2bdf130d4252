"""The training loop: one for all stages. Resumable at any step, told on a progress bar and in metrics.jsonl."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset

from infinitevl.data.packing import Batch
from infinitevl.errors import InfiniteVLError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.train.curves import draw
from infinitevl.train.keeping import (
    CHECKPOINT,
    CURVES,
    METRICS,
    MODEL,
    Point,
    forget_after,
    load_checkpoint,
    load_model,
    pin,
    replace,
    save_checkpoint,
)
from infinitevl.train.stages import Stage, backward_step, gradient_norms, select, summary

REMEMBERED = 100  # losses that tell what is usual
EXPLODED = 20.0  # times the median of these, and
ALWAYS_FINE = 10.0  # above what any start has: the loss of a good model may well jump from 0.01 to 0.3


@dataclass(frozen=True)
class Settings:
    """Nothing here changes the result. workers: processes that make batches; checkpoint_every: steps."""

    workers: int = 0
    checkpoint_every: int = 200


def prepare_device() -> torch.device:
    """The GPU where there is one, set up for training, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # cuDNN's attention plans anew for every new shape of a batch: 0.26 s a step of nano on an H200, 0.22 s without
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("high")  # what autocast leaves in float32 may use TF32
    return torch.device("cuda")


def train_stage(
    stage: Stage,
    student: InfiniteVLForConditionalGeneration,
    teacher: InfiniteVLForConditionalGeneration | None,
    data: Dataset,
    out: Path,
    settings: Settings,
) -> InfiniteVLForConditionalGeneration:
    """Train `student`, in place and on its device, and write it to out/model with its processor.

    Goes on from out/checkpoint.pt where there is one; a stage that is done is loaded, not trained again.
    Raises InfiniteVLError where the loss or the gradient is not a number, or the loss explodes, naming the step and
    the part with the largest gradient, and where `out` holds a stage of other settings.
    """
    pin(out / "stage.json", asdict(stage))
    if (out / MODEL).is_dir():
        return load_model(out / MODEL, student)
    names = select(student, stage.trains)
    Console(stderr=True, highlight=False).print(f"[bold]{stage.name}[/]: {stage.steps} steps of {stage.loss}")
    Console(stderr=True, highlight=False).print(summary(student, names), markup=False)
    _Run(stage, student, teacher, names, out, settings).train(data)
    draw(out / METRICS, out / CURVES, f"{stage.name}: {stage.loss}")
    replace(out / MODEL, lambda folder: _write(student, folder))
    (out / CHECKPOINT).unlink(missing_ok=True)
    return student


def _write(model: InfiniteVLForConditionalGeneration, folder: Path) -> None:
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)


class _Run:
    """A stage under way. trained: the parameters that train, by name."""

    def __init__(
        self,
        stage: Stage,
        student: InfiniteVLForConditionalGeneration,
        teacher: InfiniteVLForConditionalGeneration | None,
        names: list[str],
        out: Path,
        settings: Settings,
    ) -> None:
        self.stage, self.student, self.out, self.settings = stage, student, out, settings
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.trained = {name: p for name, p in student.named_parameters() if name in set(names)}
        decay, fused = stage.weight_decay, student.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.trained.values(), betas=(0.9, 0.999), weight_decay=decay, fused=fused)
        self.step, self.tokens = 0, 0
        self.losses: list[float] = []

    def train(self, data: Dataset) -> None:
        self._resume()
        self.student.train()
        forget_after(self.out / METRICS, self.step)
        with (self.out / METRICS).open("a") as metrics, _bar() as bar:
            task = bar.add_task(self.stage.name, total=self.stage.steps, completed=self.step, told="")
            for point in self._points(data):
                metrics.write(point.line())
                told = f"loss {point.loss:.4f}  {point.tokens_per_second:,.0f} tokens/s"
                bar.update(task, completed=point.step, told=told)
                if point.step % self.settings.checkpoint_every == 0:
                    metrics.flush()
                    self._save()

    def _points(self, data: Dataset) -> Iterator[Point]:
        began = perf_counter()
        for batch in self._batches(data):
            point = self._step(batch)
            now = perf_counter()
            point.tokens_per_second, began = batch.tokens / (now - began), now
            yield point

    def _batches(self, data: Dataset) -> Iterator[Batch]:
        """Those of the steps that are left."""
        order, workers = range(self.step, self.stage.steps), self.settings.workers
        loader: Any = DataLoader(
            data, batch_size=None, sampler=order, num_workers=workers, prefetch_factor=4 if workers else None
        )
        return iter(loader)

    def _step(self, batch: Batch) -> Point:
        device, rate = self.student.device, self.stage.learning_rate * schedule(self.step, self.stage)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = float(backward_step(self.stage, self.student, self.teacher, batch.to(device)))
        self._check_loss(loss)
        norm = float(clip_grad_norm_(self.trained.values(), self.stage.clip))
        if not math.isfinite(norm):
            self._stop(f"a gradient of norm {norm}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.tokens = self.step + 1, self.tokens + batch.tokens
        self.losses = [*self.losses, loss][-REMEMBERED:]
        return Point(self.step, loss, rate, norm, self.tokens, 0.0)

    def _check_loss(self, loss: float) -> None:
        usual = median(self.losses) if len(self.losses) >= REMEMBERED // 5 else math.inf
        if not math.isfinite(loss):
            self._stop(f"a loss of {loss}")
        if loss > max(EXPLODED * usual, ALWAYS_FINE):
            self._stop(f"a loss of {loss:.4g}, where {usual:.4g} was usual")

    def _stop(self, why: str) -> None:
        norms = gradient_norms(self.student)
        worst = max(norms, key=lambda part: norms[part] if math.isfinite(norms[part]) else math.inf, default="none")
        raise InfiniteVLError(
            f"{self.stage.name} broke at step {self.step + 1}: {why}; the largest gradient is in {worst}. Delete "
            f"{self.out} and run again with a lower learning_rate (now {self.stage.learning_rate:g}), a longer "
            f"warmup, or clip below {self.stage.clip:g}"
        )

    def _save(self) -> None:
        progress = {"step": self.step, "tokens": self.tokens, "losses": self.losses}
        weights = {name: parameter.detach() for name, parameter in self.trained.items()}
        state = {**progress, "weights": weights, "optimizer": self.optimizer.state_dict()}
        save_checkpoint(self.out / CHECKPOINT, state)

    @torch.no_grad()
    def _resume(self) -> None:
        state = load_checkpoint(self.out / CHECKPOINT)
        if state is None:
            return
        self.step, self.tokens, self.losses = state["step"], state["tokens"], state["losses"]
        for name, parameter in self.trained.items():
            parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def schedule(step: int, stage: Stage) -> float:
    """The factor of the learning rate at a step counted from 0: linear warm-up, then a cosine to zero."""
    warm = max(1, round(stage.warmup * stage.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, stage.steps - warm)))


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
