"""Training goes on where it was killed, is never done twice, and stops where it breaks."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from train_kit import HYBRID, Copies, Listed, small_model, small_teacher, stage

import infinitevl
from helpers import assert_same_state
from infinitevl.data.packing import Batch
from infinitevl.errors import InfiniteVLError
from infinitevl.model.layers import GatedDeltaNet
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.train import loop
from infinitevl.train.keeping import METRICS, load_checkpoint, load_model, read_metrics
from infinitevl.train.loop import Settings, schedule, train_stage
from infinitevl.train.stages import Objective, Stage

KINDS = HYBRID[:3]
STAGES = {
    "cross_entropy": stage(),
    "layerwise": stage(loss="layerwise", trains="delta"),
    "distillation": stage(loss="distillation", trains="delta"),
    "muon": stage(optimizer="muon"),
    "accumulated": stage(accumulate=2),
    "adapters": stage(lora=4, trains="language"),
}


class Killed(BaseException):
    """Nobody catches it, as nobody catches a kill."""


class Fatal(Listed):
    """Batches until the one of `at`, which kills."""

    def __init__(self, data: Copies, at: int) -> None:
        self.data, self.at, self.steps = data, at, data.steps

    def __getitem__(self, step: int) -> Batch:
        if step == self.at:
            raise Killed
        return self.data[step]


def train(kind: Stage, out: Path, killed_at: int | None = None, every: int = 2) -> Model:
    student = small_model(KINDS)
    teacher = small_teacher(layers=len(KINDS)) if kind.needs_teacher else None
    data = Copies(student, kind.steps * kind.accumulate)
    return train_stage(
        kind, student, teacher, data if killed_at is None else Fatal(data, killed_at), out, Settings(0, every)
    )


def told(out: Path) -> list[dict[str, Any]]:
    """The metrics, without the time they took."""
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def tensors(state: Any, name: str = "") -> dict[str, Any]:
    """All that a checkpoint holds, by where it is."""
    if isinstance(state, dict):
        return {key: value for part in state for key, value in tensors(state[part], f"{name}/{part}").items()}
    if isinstance(state, (list, tuple)):
        return tensors(dict(enumerate(state)), name)
    return {name: state}


def same(found: Any, expected: Any) -> bool:
    return torch.equal(found, expected) if isinstance(found, Tensor) else found == expected


def assert_same(found: Any, expected: Any) -> None:
    found, expected = tensors(found), tensors(expected)
    assert found.keys() == expected.keys()
    assert [name for name in found if not same(found[name], expected[name])] == []


@pytest.fixture(autouse=True)
def no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("infinitevl.train.curves.find_spec", lambda name: None)


@pytest.fixture
def drawn() -> None:
    """This test wants loss.png."""


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[Path, list[Any]]:
    """Every checkpoint that is written, by its place."""
    found: dict[Path, list[Any]] = {}

    def save(path: Path, state: Any) -> None:
        save_checkpoint(path, state)
        found.setdefault(path.parent, []).append(load_checkpoint(path))

    save_checkpoint = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", save)
    return found


@pytest.mark.parametrize("loss", STAGES)
def test_killed_anywhere(loss: str, tmp_path: Path, kept: dict[Path, list[Any]]):
    """Weights, metrics and optimiser are bit by bit those of a training that was left alone."""
    kind, whole = STAGES[loss], tmp_path / "whole"
    expected = train(kind, whole).state_dict()
    assert [state["step"] for state in kept[whole]] == [2, 4, 6]
    assert not (whole / "checkpoint.pt").exists()
    for step in range(kind.steps) if loss == "cross_entropy" else (3,):
        out = tmp_path / str(step)
        with pytest.raises(Killed):
            train(kind, out, killed_at=step * kind.accumulate)
        assert (out / "checkpoint.pt").exists() == (step >= 2)
        assert_same(train(kind, out).state_dict(), expected)
        assert told(out) == told(whole)
        assert_same(kept[out][-1], kept[whole][-1])


@pytest.mark.parametrize("loss", ["cross_entropy", "distillation", "adapters"])
def test_checkpointing_changes_nothing(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It computes the layers twice."""
    calls = []
    forward = GatedDeltaNet.forward
    monkeypatch.setattr(GatedDeltaNet, "forward", lambda *args: calls.append(None) or forward(*args))
    expected = train(STAGES[loss], tmp_path / "plain")
    once = len(calls)
    found = train(replace(STAGES[loss], checkpointing=True), tmp_path / "again")
    assert len(calls) == 3 * once
    assert_same(found.state_dict(), expected.state_dict())
    assert told(tmp_path / "again") == told(tmp_path / "plain")
    assert not any(layer.gradient_checkpointing for layer in found.model.language_model.layers)


def test_killed_twice_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is half written counts for nothing."""
    expected = train(STAGES["cross_entropy"], tmp_path / "whole").state_dict()

    def half(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise Killed

    out = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(torch, "save", half)
        train(STAGES["cross_entropy"], out)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(
            loop, "_write", lambda model, weights, folder: (folder.mkdir(), half(None, folder / "config.json"))
        )
        train(STAGES["cross_entropy"], out)
    with (out / METRICS).open("a") as file:
        file.write('{"step": 7, "lo')
    assert len(read_metrics(out / METRICS)) == 6
    assert_same(train(STAGES["cross_entropy"], out).state_dict(), expected)
    assert told(out) == told(tmp_path / "whole")


def test_a_finished_stage_is_not_trained_again(tmp_path: Path, drawn: None):
    trained = train(STAGES["cross_entropy"], tmp_path)
    again = train(STAGES["cross_entropy"], tmp_path, killed_at=0)
    assert_same(again.state_dict(), trained.state_dict())
    assert again.processor is not None
    left = {path.name for path in tmp_path.iterdir()} - {"logs"}  # of TensorBoard, where it is installed
    assert left == {"model", "metrics.jsonl", "loss.png", "stage.json"}
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_can_be_loaded(tmp_path: Path):
    """By everyone, and by the next stage, for which it computes the same bit by bit."""
    trained, loaded = train(STAGES["cross_entropy"], tmp_path), infinitevl.load(tmp_path / "model")
    models = trained, loaded, load_model(tmp_path / "model", trained)
    streams = [model.eval().stream() for model in models]
    for stream in streams:
        "".join(stream.ask("What?", remember=True, max_new_tokens=4))
    assert_same_state(streams[1].state, streams[0].state, 1e-5)
    assert_same_state(streams[2].state, streams[0].state)


def test_other_settings_need_another_folder(tmp_path: Path):
    with pytest.raises(Killed):
        train(STAGES["cross_entropy"], tmp_path, killed_at=3)
    with pytest.raises(InfiniteVLError, match=r"was begun with learning_rate 0\.001, not 0\.1"):
        train(replace(STAGES["cross_entropy"], learning_rate=0.1), tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing of use")
    with pytest.raises(InfiniteVLError, match=r"checkpoint.pt cannot be read"):
        train(STAGES["cross_entropy"], tmp_path)


def test_no_steps(tmp_path: Path):
    """An ablation leaves a stage out."""
    before = small_model(KINDS).state_dict()
    assert_same(train(stage(steps=0), tmp_path).state_dict(), before)
    assert (tmp_path / "model" / "config.json").exists()


def test_only_what_trains_changes(tmp_path: Path):
    before, after = small_model(KINDS).state_dict(), train(STAGES["layerwise"], tmp_path).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.split(".")[3] in "12" and ".self_attn." in name for name in changed)


@pytest.mark.parametrize("layer", [1, 2])
def test_nan_in_a_weight(layer: int, tmp_path: Path):
    """Then every gradient is none, so that the weights tell where."""
    student = small_model(KINDS)
    student.model.language_model.layers[layer].mlp.up_proj.weight.data[0, 0] = float("nan")
    part = rf"language_model\.layers\.{layer}, whose weights are not all numbers"
    with pytest.raises(
        InfiniteVLError, match=rf"^test broke at step 1: a loss of nan; the largest gradient is in {part}"
    ) as e:
        train_stage(stage(), student, None, Copies(student, 6), tmp_path, Settings())
    assert "\n" not in str(e.value)


def test_nan_from_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Weights are fine, and no gradient is."""
    weighed = Objective.forward
    monkeypatch.setattr(Objective, "forward", lambda objective, batch: weighed(objective, batch) * float("nan"))
    student = small_model(KINDS)
    with pytest.raises(InfiniteVLError, match="a loss of nan; the largest gradient is in no part alone"):
        train_stage(stage(), student, None, Copies(student, 6), tmp_path, Settings())


def test_the_largest_gradient_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One layer's gradient overflows while the loss is fine; the weights are left alone."""
    student = small_model(KINDS)
    weight = student.model.language_model.layers[2].mlp.down_proj.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(
        InfiniteVLError, match=r"step 1: a gradient of norm (nan|inf); .* in language_model\.layers\.2\."
    ):
        train_stage(stage(), student, None, Copies(student, 6), tmp_path, Settings())
    assert_same(student.state_dict(), before)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (
            [1.0] * 22 + [19.0, 11.0, 0.1, 21.0],
            "step 26: a loss of 21, where 1 was usual; the largest gradient is in ",
        ),
        ([6.0, 60.0, 100.0, 110.0, 121.0], "step 5: a loss of 121, where 6 was usual"),
    ],
)
def test_an_exploding_loss(losses: list[float], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After many steps, or from the start: what the loss has been since is no excuse."""
    given = iter(losses)

    def forward(objective: Objective, batch: Batch) -> Tensor:
        return (objective.student.model.language_model.norm.weight.sum() * 0 + 1) * next(given)

    monkeypatch.setattr(Objective, "forward", forward)
    student = small_model(KINDS)
    with pytest.raises(InfiniteVLError, match=message):
        train_stage(stage(steps=30), student, None, Copies(student, 30), tmp_path, Settings())


def test_logs_go_on_where_training_does(tmp_path: Path):
    """Steps that a kill took back are in TensorBoard once."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    kind = STAGES["cross_entropy"]
    with pytest.raises(Killed):
        train(kind, tmp_path, killed_at=5)
    train(kind, tmp_path)
    events = reading.EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, kind.steps + 1))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("key", "mode", "told"), [(None, "", False), ("a key", "", True), (None, "offline", True)])
def test_wandb_is_told_where_it_can_be(
    key: str | None, mode: str, told: bool, old: bool, monkeypatch: pytest.MonkeyPatch
):
    wandb: Any = ModuleType("wandb")
    wandb.api = SimpleNamespace(api_key=key)
    wandb.login = (lambda: None) if old else lambda prompt, verify: prompt is verify is False and key is not None
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert loop._may_log("wandb") is told and loop._may_log("tensorboard")


def test_the_learning_rate():
    kind = stage(steps=100, warmup=0.1)
    factors = [schedule(step, kind) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.01
    assert schedule(0, stage(steps=1)) == 1.0


def test_curves_are_left_out_without_matplotlib(tmp_path: Path):
    train(stage(steps=1), tmp_path)
    assert not (tmp_path / "loss.png").exists()
