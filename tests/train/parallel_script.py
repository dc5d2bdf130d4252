"""What every process of test_parallel.py runs: python parallel_script.py OUT, in the environment of a launcher."""

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from train_kit import Listed, clip, encoder, small_model, small_teacher, stage, talk

from infinitevl.data.encode import Encoded
from infinitevl.data.packing import Batch, pack
from infinitevl.evaluation import figures
from infinitevl.evaluation.plan import QUICK
from infinitevl.evaluation.run import evaluate_model
from infinitevl.model.random_model import random_model
from infinitevl.train import curves, loop
from infinitevl.train.loop import Settings, train_stage
from infinitevl.train.stages import Stage

KINDS = ["sliding_attention", "linear_attention", "linear_attention"]


class Dealt(Listed):
    """Rows of text and, every other one, of a video too; each process takes its own of them."""

    def __init__(self, model: Any, steps: int, rows: int = 2) -> None:
        self.encode, self.steps, self.rows = encoder(model), steps, rows

    def __getitem__(self, step: int) -> Batch:
        numbers = range(self.rank, self.rows, self.ranks)
        return pack([[self._row(step * self.rows + number)] for number in numbers], 110)

    def _row(self, number: int) -> Encoded:
        with torch.random.fork_rng():
            torch.manual_seed(number)
            videos = [clip(2)] if number % 2 else []
            return self.encode(talk(f"What {number}?", "That." * (1 + number % 3), *videos))


CASES: dict[str, Stage] = {
    "cross_entropy": stage(steps=3, accumulate=2),
    "layerwise": stage(steps=2, loss="layerwise", trains="delta"),
    "distillation": stage(steps=2, loss="distillation", trains="delta", checkpointing=True),
    "adapters": stage(steps=2, lora=4, trains="language"),
}


class Killed(BaseException):
    pass


class Fatal(Dealt):
    """Kills in the second step."""

    def __getitem__(self, step: int) -> Batch:
        if step == 3:
            raise Killed
        return super().__getitem__(step)


def train(name: str, out: Path, kind: type[Dealt] = Dealt) -> None:
    student, case = small_model(KINDS), CASES[name]
    teacher = small_teacher(layers=len(KINDS)) if case.needs_teacher else None
    data = kind(student, case.steps * case.accumulate)
    trained = train_stage(case, student, teacher, data, out / name, Settings(checkpoint_every=1))
    assert all(type(parameter.data) is torch.Tensor for parameter in trained.parameters())


def killed(name: str, out: Path) -> None:
    with suppress(Killed):
        train(name, out, Fatal)
    PartialState().wait_for_everyone()  # the first process may still be writing
    assert (out / name / "checkpoint.pt").exists()


def evaluate(out: Path) -> None:
    """A model of random weights, small tests."""
    model = random_model(0, num_hidden_layers=2, layer_types=KINDS[:2], sliding_window=48)
    plan = replace(QUICK, count=4, ages=(0.5, 1), facts=2, loads=(), long_tokens=512, long_ages=(1,), asking=16)
    evaluate_model(model, replace(plan, rows=2, long_streams=3), out / "evaluation")


def shard() -> None:
    """FSDP2 from now on; by its environment accelerate starts it on GPUs alone."""
    loop.accelerate()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["DecoderLayer"]
    )
    AcceleratorState._shared_state.update(fsdp_plugin=plugin)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    assert loop.accelerate().is_fsdp2


def main(out: Path) -> None:
    torch.set_num_threads(1)
    curves.find_spec, loop.LOGGERS, figures.find_spec = lambda name: None, (), lambda name: None  # of no interest
    for kind in ("ddp", "fsdp"):
        if kind == "fsdp":
            evaluate(out / "ddp")
            shard()
        killed("cross_entropy", out / kind)
        for name in CASES:
            train(name, out / kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
