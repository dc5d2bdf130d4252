"""The training loop: one for all stages. Resumable at any step, told on a progress bar and in metrics.jsonl."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.checkpoint import checkpoint

from infinitevl.data.packing import Batch
from infinitevl.errors import InfiniteVLError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.train.adapters import add_adapters
from infinitevl.train.compiled import compiled_blocks
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
from infinitevl.train.optimizers import optimizers
from infinitevl.train.parallel import joined, shared, whole
from infinitevl.train.stages import Objective, Stage, gradient_norms, not_numbers, select, summary

LOGGERS = ("tensorboard", "wandb")  # those that are installed are told, and W&B where it is logged in or offline
REMEMBERED = 100  # losses that tell what is usual
EXPLODED = 20.0  # times the median of these, and
ALWAYS_FINE = 10.0  # above what any start has: the loss of a good model may well jump from 0.01 to 0.3
MANY = 20e6  # tokens of a process that save more than the minute that compiling takes

UNSEEN = torch.zeros(1, 28, 28, 3, dtype=torch.uint8)  # a frame of no token of the batch


@dataclass(frozen=True)
class Settings:
    """Nothing here changes the result. workers: processes that make batches; checkpoint_every: steps."""

    workers: int = 0
    checkpoint_every: int = 200


class Data(Protocol):
    """Batches in order. state: what came with the last batch that was used, None at the start."""

    def shard(self, rank: int, world_size: int) -> "Data":
        """The part of one process: of every batch its own rows."""
        ...

    def batches(self, start: int, state: Any, workers: int) -> Iterator[tuple[Batch, Any]]:
        """The batches from number `start` on, each with the state that goes on behind it."""
        ...


def accelerate(out: Path | None = None) -> Accelerator:
    """This process's device, mixed precision (bf16 on a GPU) and, for a stage, loggers below `out`."""
    gpu = torch.cuda.is_available()
    if gpu:
        # cuDNN's attention plans anew for every new shape of a batch: 0.26 s a step of nano on an H200, 0.22 s without
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.set_float32_matmul_precision("high")  # what autocast leaves in float32 may use TF32
    loggers: list[Any] = [name for name in LOGGERS if find_spec(name) and _may_log(name)] if out else []
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # else only one process would read the models
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # of vision in batches of text
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # else processes of torchrun would not know of each other
        mixed_precision="bf16" if gpu else "no", log_with=loggers or None, project_dir=out, kwargs_handlers=[unused],
    )  # fmt: skip


def _may_log(logger: str) -> bool:
    """W&B asks for a key where it has none, which ends a training that nobody sits at."""
    if logger != "wandb" or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return True
    import wandb  # pyright: ignore[reportMissingImports]

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # of older versions
        return bool(wandb.api.api_key)


def train_stage(
    stage: Stage,
    student: InfiniteVLForConditionalGeneration,
    teacher: InfiniteVLForConditionalGeneration | None,
    data: Data,
    out: Path,
    settings: Settings,
) -> InfiniteVLForConditionalGeneration:
    """Train `student`, in place and on its device, and write it to out/model with its processor.

    Goes on from out/checkpoint.pt where there is one; a stage that is done is loaded, not trained again. Under
    `accelerate launch` every process trains on its rows of each batch.
    Raises InfiniteVLError where the loss or the gradient is not a number, or the loss explodes, naming the step and
    the part with the largest gradient, where `out` holds a stage of other settings or of another number of
    processes, and where they cannot share the rows.
    """
    accelerator = accelerate(out)
    if stage.rows % accelerator.num_processes:
        raise InfiniteVLError(f"{stage.name}: {accelerator.num_processes} processes cannot share {stage.rows} rows")
    with accelerator.main_process_first():
        pin(out / "stage.json", asdict(stage))
    if (out / MODEL).is_dir():
        return load_model(out / MODEL, student)
    names = select(student, stage.trains)
    adapters = add_adapters(student, names, stage.lora) if stage.lora else None
    if accelerator.is_main_process:
        _announce(stage, student)
    run = _Run(stage, Objective(stage, student, teacher), out, settings, accelerator)
    with _checkpointing(student, stage):
        run.train(data.shard(accelerator.process_index, accelerator.num_processes))
    if adapters is not None:
        adapters.merge_and_unload()
    weights = _whole_weights(student.named_parameters(), accelerator)
    if accelerator.is_main_process:
        draw(out / METRICS, out / CURVES, f"{stage.name}: {stage.loss}")
        replace(out / MODEL, lambda folder: _write(student, weights, folder))
        (out / CHECKPOINT).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return student if accelerator.num_processes == 1 else load_model(out / MODEL, student)


def _announce(stage: Stage, student: InfiniteVLForConditionalGeneration) -> None:
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold]{stage.name}[/]: {stage.steps} steps of {stage.loss}")
    names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    console.print(summary(student, names), markup=False)


@contextmanager
def _checkpointing(student: InfiniteVLForConditionalGeneration, stage: Stage) -> Iterator[None]:
    """Layer-wise distillation always does it, layer by layer."""
    if not stage.checkpointing or stage.loss == "layerwise":
        yield
        return
    layers: Any = student.model.language_model.layers
    for layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = False


def _whole_weights(named: Iterable[tuple[str, Tensor]], accelerator: Accelerator) -> dict[str, Tensor]:
    """Of use in the main process alone; all must call it."""
    return {name: whole(tensor.detach(), accelerator.is_main_process) for name, tensor in named}


def _write(model: InfiniteVLForConditionalGeneration, weights: dict[str, Tensor], folder: Path) -> None:
    model.save_pretrained(folder, state_dict=weights)
    model.processor.save_pretrained(folder)


class _Run:
    """A stage under way. trained: the parameters that train, by name."""

    def __init__(
        self, stage: Stage, objective: Objective, out: Path, settings: Settings, accelerator: Accelerator
    ) -> None:
        self.stage, self.out, self.settings, self.accelerator = stage, out, settings, accelerator
        self.student, self.teacher, self.count = objective.student, objective.teacher, objective.count
        found = optimizers(stage, self.student)
        self.shares = [share for _, share in found]
        prepared: Any = accelerator.prepare(objective, *(optimizer for optimizer, _ in found))
        self.objective, *self.optimizers = prepared
        self.trained = {name: p for name, p in self.student.named_parameters() if p.requires_grad}
        self.step, self.tokens, self.state = 0, 0, None
        self.losses: list[float] = []
        self.first = math.inf  # loss of the stage

    def train(self, data: Data) -> None:
        self._resume()
        self.objective.train()
        self.accelerator.init_trackers("logs", init_kwargs={"tensorboard": {"purge_step": self.step + 1}})
        if self.accelerator.is_main_process:
            forget_after(self.out / METRICS, self.step)
        path = self.out / METRICS if self.accelerator.is_main_process else Path(os.devnull)
        with path.open("a", buffering=1) as metrics, _bar(self.accelerator.is_main_process) as bar:
            task = bar.add_task(self.stage.name, total=self.stage.steps, completed=self.step, told="")
            for point in self._points(data):
                self.accelerator.log(asdict(point), step=point.step)
                metrics.write(point.line())
                told = f"loss {point.loss:.4f}  gradient {point.gradient_norm:.2f}  rate {point.learning_rate:.1e}"
                told = f"{told}  {point.tokens_per_second:,.0f} tokens/s"
                bar.update(task, completed=point.step, told=told)
                if point.step % self.settings.checkpoint_every == 0:
                    metrics.flush()
                    self._save()
        for tracker in self.accelerator.trackers:  # not end_training, which would part the processes
            tracker.finish()

    def _points(self, data: Data) -> Iterator[Point]:
        many, left = self.stage.accumulate, self.stage.steps - self.step
        batches = data.batches(self.step * many, self.state, self.settings.workers)
        with self._compiled():
            began = perf_counter()
            for _ in range(left):
                pairs = list(islice(batches, many))
                point, tokens = self._step([batch for batch, _ in pairs]), self.tokens
                self.step, self.tokens, self.state = point.step, point.tokens, pairs[-1][1]
                self.losses = [*self.losses, point.loss][-REMEMBERED:]
                self.first = point.loss if point.step == 1 else self.first
                now = perf_counter()
                point.tokens_per_second, began = (self.tokens - tokens) / (now - began), now
                yield point

    def _compiled(self) -> AbstractContextManager[None]:
        """Blocks are compiled on a GPU, where many tokens pay for it, but not those that FSDP shards."""
        stage, processes = self.stage, self.accelerator.num_processes
        tokens = stage.steps * stage.accumulate * stage.rows * stage.tokens / processes
        pays = self.accelerator.device.type == "cuda" and tokens >= MANY
        if not pays or self.accelerator.is_fsdp2:
            return nullcontext()
        return compiled_blocks(*(model for model in (self.student, self.teacher) if model is not None))

    def _step(self, batches: list[Batch]) -> Point:
        counts = [self.count(batch) for batch in batches]
        share, tokens = self._means(sum(counts), sum(batch.tokens for batch in batches))  # of a process
        parts = [self._backward(batch, count / max(share, 1.0)) for batch, count in zip(batches, counts, strict=True)]
        size = get_total_norm(p.grad for p in self.trained.values() if p.grad is not None)
        found, norm = torch.stack([torch.stack(parts).sum(), joined(size).float()]).tolist()
        (loss,) = self._means(found)
        self._check(loss, norm)
        clip_grads_with_norm_(self.trained.values(), self.stage.clip, size)
        rate = self.stage.learning_rate * schedule(self.step, self.stage)
        for optimizer, part in zip(self.optimizers, self.shares, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * part
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return Point(self.step + 1, loss, rate, norm, self.tokens + round(tokens * self.accelerator.num_processes), 0)

    def _backward(self, batch: Batch, weight: float) -> Tensor:
        """Adds the gradients of a batch, and returns its loss. Under FSDP all parts must run in all processes."""
        if self.accelerator.is_fsdp2 and not batch.frames:
            batch = Batch(**{**vars(batch), "frames": [UNSEEN]})
        loss = self.objective(batch.to(self.accelerator.device)) * weight
        self.accelerator.backward(loss)
        return loss.detach().float()

    def _means(self, *values: float) -> list[float]:
        """Over processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        tensor: Any = self.accelerator.reduce(
            torch.tensor(values, dtype=torch.float64, device=self.accelerator.device), "mean"
        )
        return tensor.tolist()

    def _check(self, loss: float, norm: float) -> None:
        usual = min(self.first, median(self.losses)) if self.losses else math.inf
        if not math.isfinite(loss):
            self._stop(f"a loss of {loss}")
        if loss > max(EXPLODED * usual, ALWAYS_FINE):
            self._stop(f"a loss of {loss:.4g}, where {usual:.4g} was usual")
        if not math.isfinite(norm):
            self._stop(f"a gradient of norm {norm}")

    def _stop(self, why: str) -> None:
        worst = self._worst()
        raise InfiniteVLError(
            f"{self.stage.name} broke at step {self.step + 1}: {why}; the largest gradient is in {worst}. Delete "
            f"{self.out} and run again with a lower learning_rate (now {self.stage.learning_rate:g}), a longer "
            f"warmup, or clip below {self.stage.clip:g}"
        )

    def _worst(self) -> str:
        """The part that broke, as far as weights and gradients tell."""
        broken = not_numbers(self.student)
        if broken:
            return f"{broken[0]}, whose weights are not all numbers"
        norms = {
            part: norm if math.isfinite(norm) else math.inf for part, norm in gradient_norms(self.student).items()
        }
        if norms and min(norms.values()) == math.inf:
            return "no part alone: none is a number"
        return max(norms, key=norms.__getitem__, default="none")

    def _save(self) -> None:
        main = self.accelerator.is_main_process
        state = {
            "step": self.step, "tokens": self.tokens, "losses": self.losses, "first": self.first,
            "data": gather_object([self.state]),  # of every process
            "weights": _whole_weights(self.trained.items(), self.accelerator),
            "optimizers": [whole(optimizer.state_dict(), main) for optimizer in self.optimizers],
        }  # fmt: skip
        if main:
            save_checkpoint(self.out / CHECKPOINT, state)

    @torch.no_grad()
    def _resume(self) -> None:
        state = load_checkpoint(self.out / CHECKPOINT)
        if state is None:
            return
        if len(state["data"]) != self.accelerator.num_processes:
            raise InfiniteVLError(f"{self.out} was begun by {len(state['data'])} processes: go on with as many")
        self.step, self.tokens, self.losses, self.first = (state[x] for x in ("step", "tokens", "losses", "first"))
        self.state = state["data"][self.accelerator.process_index]
        for name, parameter in self.trained.items():
            parameter.copy_(shared(state["weights"][name], parameter))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for number, values in saved["state"].items():
                saved["state"][number] = {key: shared(value, parameters[number]) for key, value in values.items()}
            optimizer.load_state_dict(saved)


def schedule(step: int, stage: Stage) -> float:
    """The factor of the learning rate at a step counted from 0: linear warm-up, then a cosine to zero."""
    warm = max(1, round(stage.warmup * stage.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, stage.steps - warm)))


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown)
