"""The training loop: one for all stages. Resumable at any step, told on a progress bar and in metrics.jsonl."""

import json
import math
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader, Dataset

from infinitevl.data.packing import Batch
from infinitevl.errors import InfiniteVLError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.train.stages import Stage, backward_step, gradient_norms, select

EXPLODED = 20.0  # times the median of the last losses
KEEP_EVERY = 200  # steps between checkpoints


@dataclass
class Settings:
    """seed: of the data; workers: processes that make batches; checkpoint_every: steps between saved states."""

    seed: int = 0
    workers: int = 0
    checkpoint_every: int = KEEP_EVERY


@dataclass
class Point:
    """One line of metrics.jsonl."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    tokens_per_second: float


class Progressed:
    """Where a stage stands; saved with the checkpoint."""

    def __init__(self) -> None:
        self.step, self.tokens = 0, 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step, self.tokens = state["step"], state["tokens"]


def train_stage(
    stage: Stage,
    student: InfiniteVLForConditionalGeneration,
    teacher: InfiniteVLForConditionalGeneration | None,
    data: Dataset,
    out: Path,
    settings: Settings,
) -> InfiniteVLForConditionalGeneration:
    """Train `student` and write it to out/model with its processor. Goes on from out/checkpoint where there is one.

    A stage that is already done is loaded, not trained again. Raises InfiniteVLError where the loss is not a number
    or explodes, naming the step and the part with the largest gradient.
    """
    if (out / "model" / "config.json").is_file():
        trained = type(student).from_pretrained(out / "model", dtype=torch.float32)
        trained.processor = student.processor
        return trained
    out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    Console(stderr=True).print(_told(stage, student, select(student, stage.trains)))
    run = _Run(stage, student, teacher, accelerator, out, settings)
    run.resume()
    run.train(data)
    _write_model(accelerator.unwrap_model(run.student), out)
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    return accelerator.unwrap_model(run.student)


def _told(stage: Stage, student: nn.Module, names: list[str]) -> str:
    sizes = {name: parameter.numel() for name, parameter in student.named_parameters()}
    own, total = sum(sizes[name] for name in names), sum(sizes.values())
    return f"{stage.name}: {stage.loss} trains {stage.trains}, {own:,} of {total:,} parameters, {stage.steps} steps"


def _write_model(model: InfiniteVLForConditionalGeneration, out: Path) -> None:
    partial = out / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    model.processor.save_pretrained(partial)
    partial.rename(out / "model")


class _Run:
    """A stage under way."""

    def __init__(
        self,
        stage: Stage,
        student: InfiniteVLForConditionalGeneration,
        teacher: InfiniteVLForConditionalGeneration | None,
        accelerator: Accelerator,
        out: Path,
        settings: Settings,
    ) -> None:
        self.stage, self.accelerator, self.out, self.settings = stage, accelerator, out, settings
        trainable = [p for p in student.parameters() if p.requires_grad]
        fused = accelerator.device.type == "cuda"
        optimizer = torch.optim.AdamW(
            trainable, lr=stage.learning_rate, betas=(0.9, 0.999), weight_decay=stage.weight_decay, fused=fused
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, stage))
        self.student, self.optimizer, self.schedule = accelerator.prepare(student, optimizer, schedule)
        self.teacher = None if teacher is None else teacher.to(accelerator.device).eval().requires_grad_(False)
        self.progress = Progressed()
        accelerator.register_for_checkpointing(self.progress)
        self.losses: deque[float] = deque(maxlen=100)

    def resume(self) -> None:
        checkpoint = self.out / "checkpoint"
        if checkpoint.is_dir():
            self.accelerator.load_state(str(checkpoint))

    def train(self, data: Dataset) -> None:
        self.student.train()
        metrics = self.out / "metrics.jsonl"
        _truncate(metrics, self.progress.step)
        with metrics.open("a") as file, _bar() as bar:
            task = bar.add_task(self.stage.name, total=self.stage.steps, completed=self.progress.step, told="")
            began = perf_counter()
            for batch in self._batches(data):
                point = self._step(batch.to(self.accelerator.device), began)
                began = perf_counter()
                file.write(json.dumps(asdict(point)) + "\n")
                bar.update(
                    task, completed=point.step, told=f"loss {point.loss:.4f}  {point.tokens_per_second:,.0f} tokens/s"
                )
                if point.step % self.settings.checkpoint_every == 0 and point.step < self.stage.steps:
                    file.flush()
                    self._save()

    def _batches(self, data: Dataset) -> Iterator[Batch]:
        order = range(self.progress.step, self.stage.steps)
        workers = self.settings.workers
        loader: Any = DataLoader(
            data, batch_size=None, sampler=order, num_workers=workers, prefetch_factor=4 if workers else None
        )
        return iter(loader)

    def _step(self, batch: Batch, began: float) -> Point:
        rate = self.schedule.get_last_lr()[0]
        with self.accelerator.autocast():
            loss = float(backward_step(self.stage, self.student, self.teacher, batch, self.accelerator.backward))
        step = self.progress.step + 1
        self._check(loss, step)
        norm = float(self.accelerator.clip_grad_norm_(self.student.parameters(), self.stage.clip))
        self._check(norm, step)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = int(batch.lengths.sum())
        self.progress.step, self.progress.tokens = step, self.progress.tokens + tokens
        self.losses.append(loss)
        return Point(step, loss, rate, norm, self.progress.tokens, tokens / (perf_counter() - began))

    def _check(self, value: float, step: int) -> None:
        usual = median(self.losses) if len(self.losses) >= 20 else math.inf
        if math.isfinite(value) and (value < EXPLODED * usual or value < 10):
            return
        norms = gradient_norms(self.student)
        worst = max(norms, key=lambda part: norms[part] if math.isfinite(norms[part]) else math.inf, default="none")
        raise InfiniteVLError(
            f"{self.stage.name} broke at step {step}: {value:.4g} where {usual:.4g} was usual; the largest gradient is "
            f"in {worst}. Try a lower learning_rate (now {self.stage.learning_rate:g}), a longer warmup, or clip below "
            f"{self.stage.clip:g}, and run again: it goes on from the last checkpoint"
        )

    def _save(self) -> None:
        partial, final = self.out / "checkpoint.partial", self.out / "checkpoint"
        shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.save_state(str(partial))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)


def _factor(step: int, stage: Stage) -> float:
    """Of the learning rate: linear warm-up, then a cosine to zero."""
    warm = max(1, round(stage.warmup * stage.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, stage.steps - warm)))


def _truncate(metrics: Path, step: int) -> None:
    """Forget the lines after `step`, which a killed run wrote beyond its last checkpoint."""
    if metrics.is_file():
        lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        metrics.write_text("".join(f"{line}\n" for line in kept))


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
