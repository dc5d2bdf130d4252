"""`infinitevl bench`: what it prints and writes, the arithmetic of its floors, and that nothing is made up."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import infinitevl
from helpers import RELATIVE, assert_same_state
from infinitevl import machine, ops
from infinitevl.benchmark import measure
from infinitevl.benchmark import run as bench
from infinitevl.benchmark.crowd import crowds
from infinitevl.benchmark.lost import TOKENS
from infinitevl.benchmark.measure import FRAMES, ROUNDS, Plan, contexts_up_to, random_frames
from infinitevl.benchmark.qwen import QwenSubject
from infinitevl.benchmark.stream import StreamSubject, endless_answers
from infinitevl.benchmark.work import Costs, as_full_attention
from infinitevl.machine import KNOWN, Ceilings
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.fp8 import quantise
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.random_model import random_model
from infinitevl.streaming.stream import Stream

Run = Callable[..., Any]
TOP = Ceilings(1e10, 1e11)
QUICK = ("--frames", 2, "--side", 56, "--tokens", 256)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings that need no measuring, answers of a moment."""
    monkeypatch.setattr(bench, "best_ceilings", lambda device, dtype: TOP)
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "ANSWER_TOKENS", 2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing"], "no such checkpoint folder: nothing"),
        (["a", "--model", "b"], "not both"),
        (["a", "--config", "4b"], "not both"),
        (["--config", "4b"], "add --random-weights"),
        (["--random-weights"], "--random-weights needs --config"),
        (["--config", "5b", "--random-weights"], "--config 5b: it is 4b, or a folder"),
        (["--config", "folder", "--random-weights"], "no config.json"),
        (["--config", "4b", "--random-weights", "--dtype", "int8"], "unknown dtype 'int8'"),
        (
            ["--config", "4b", "--random-weights"],
            "4b in float32 needs 18.2 GiB of memory, and 4.0 GiB are free on cpu",
        ),
        (["--compare", "slow"], "'slow' is not one of"),
        (["--compare", "triton"], "--compare triton needs a GPU, and this runs on cpu"),
        (["--compare", "fla"], "pip install flash-linear-attention"),
        (["--tokens", "-1"], "not in the range"),
        (["--frames", "0"], "not in the range"),
        (["--side", "100"], "a multiple of 28"),
        (["--device", "toaster"], "toaster"),
        (["--out", "file/out"], "cannot use file/out as a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str):
    monkeypatch.setattr("infinitevl.commands.bench.free_bytes", lambda device: 2**32)
    Path("file").touch()
    Path("folder").mkdir()
    done = run("bench", *args)
    assert (done.code, done.out, len(done.err)) == (2, [], 1), done
    assert done.err[0].startswith("infinitevl: ")
    assert message in done.err[0]


def test_a_checkpoint(run: Run, checkpoint: Path):
    done = run("bench", checkpoint, *QUICK, "--compare", "eager", "--compare", "qwen2.5-vl", "--out", "found/here")
    assert (done.code, done.err) == (0, []), done
    found = json.loads(done.out[-1])
    assert json.loads(Path("found/here/bench.json").read_text()) == found
    assert Path("found/here/bench.md").read_text().startswith("# Speed\n")
    assert Path("found/here/bench.png").read_bytes().startswith(b"\x89PNG")
    text = "\n".join(done.out)
    assert "positions were moved on, not streamed" in text
    assert "eager is what runs here anyway" in text
    assert "an ideal engine of that would need" in text
    assert [row["subject"] for row in found["rows"]] == [
        s for s in ("infinitevl", "eager", "qwen2.5-vl") for _ in "012"
    ]
    for row in found["rows"]:
        assert row["frames"] == 2
        assert 0 < row["frame_ms"] <= row["frame_p95_ms"] <= row["frame_p99_ms"]
        assert row["frame_of_floor"] == row["frame_floor_ms"] / row["frame_ms"]
        assert math.isfinite(row["token_ms"] + row["first_ms"])
        assert row["missing"] is None
    ours, qwen = found["rows"][:3], found["rows"][6:]
    assert [row["context"] for row in ours[1:]] == [61, 256]
    assert ours[2]["streamed"] < 64 + 4 + 1 <= ours[2]["context"]  # the window, a frame
    assert len({row["state_bytes"] for row in ours}) == 1
    assert [row["context"] for row in qwen] == [4, 64, 256]
    assert qwen[2]["state_bytes"] == pytest.approx(4 * qwen[1]["state_bytes"], rel=1e-3)  # but for the counters


def test_random_weights_and_nothing_but_json(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """The configuration alone is used, with a tokenizer of bytes. Without matplotlib there is no figure."""
    monkeypatch.setattr("infinitevl.commands.bench.find_spec", lambda name: None)
    Path("sizes").mkdir()
    (Path("sizes") / "config.json").write_text((checkpoint / "config.json").read_text())
    done = run("bench", "--config", "sizes", "--random-weights", *QUICK, "--streamed", "--dtype", "bfloat16", "--json")
    assert (done.code, len(done.err), len(done.out)) == (0, 1, 1), done
    assert "no figure without matplotlib" in done.err[0]
    assert not Path("bench/bench.png").exists()
    found = json.loads(done.out[0])
    assert (found["model"], found["dtype"]) == ("sizes (random weights)", "bfloat16")
    assert [row["streamed"] for row in found["rows"]] == [row["context"] for row in found["rows"]]
    assert found["rows"][-1]["context"] > 250
    assert not any("moved on" in note for note in found["notes"])


def test_float8(run: Run, checkpoint: Path):
    """What it loses is told; its floors are those of half the bytes."""
    done = run("bench", checkpoint, *QUICK, "--dtype", "fp8", "--json")
    assert (done.code, done.err) == (0, []), done
    found = json.loads(done.out[-1])
    assert (found["dtype"], found["lost"]["tokens"]) == ("fp8", TOKENS)
    assert 0 < found["lost"]["hidden"] < 1 and 0 < found["lost"]["logits"] < 1
    assert any("hidden states are off by" in note for note in found["notes"])
    costs, half = Costs(InfiniteVLConfig(), torch.bfloat16), Costs(InfiniteVLConfig(), torch.bfloat16, fp8=True)
    weights = 3.43e9 + 0.31e9
    assert costs.token(0).nbytes - half.token(0).nbytes == pytest.approx(weights, rel=0.01)
    assert half.weight_bytes == pytest.approx(costs.weight_bytes / 2 + 2 * 0.31e9, rel=0.01)
    assert costs.frame((32, 32), 0).operations / half.frame((32, 32), 0).operations == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_float8(tied: bool):
    """A byte for every element that the model has in the end, and the embedding's second."""
    config = random_model(0, num_hidden_layers=2).config.to_dict()
    model = InfiniteVLForConditionalGeneration(InfiniteVLConfig.from_dict({**config, "tie_word_embeddings": tied}))
    assert Costs.of(model.bfloat16()).weight_bytes == sum(p.nbytes for p in model.parameters())
    quantise(model.eval())
    elements = sum(p.numel() for p in model.parameters())
    assert Costs.of(model).weight_bytes == elements + model.get_input_embeddings().weight.numel()


def test_what_does_not_fit_is_told(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """Its floor is there all the same."""
    monkeypatch.setattr("infinitevl.commands.bench.draw", lambda path, results: None)
    monkeypatch.setattr(QwenSubject, "_no_room", lambda self, context: "it does not fit" if context > 100 else None)
    done = run("bench", checkpoint, *QUICK, "--compare", "qwen2.5-vl", "--json")
    last = json.loads(done.out[-1])["rows"][-1]
    assert (last["context"], last["missing"], last["frame_ms"]) == (256, "it does not fit", None)
    assert last["frame_floor_ms"] > 0
    assert any("qwen2.5-vl at 256 tokens: it does not fit." in note for note in json.loads(done.out[-1])["notes"])


def test_floors_of_the_4b():
    """By hand: 3.43 G parameters in layers, 0.31 G of embeddings, 0.67 G of vision; 127 MiB of state."""
    costs = Costs(InfiniteVLConfig(), torch.bfloat16)
    frame, token = costs.frame((32, 32), 100_000), costs.token(100_000)
    assert frame.operations == pytest.approx(
        1.755e12 + 1.34e12 + 9 * 4 * 16 * 128 * 256 * 8192 + 27 * 6 * 256 * 2**19, rel=0.04
    )
    assert frame.nbytes == pytest.approx(2 * (3.43e9 + 0.67e9) + 76e6 + 2 * 57e6, rel=0.01)
    assert token.nbytes == pytest.approx(2 * (3.43e9 + 0.31e9) + 76e6 + 2 * 57e6, rel=0.01)
    assert costs.token(0).nbytes < costs.token(8191).nbytes == costs.token(10**6).nbytes
    model_state = costs.state_bytes(0)
    assert model_state == costs.state_bytes(10**6) == pytest.approx(127 * 2**20, rel=0.01)


def test_a_cache_grows_with_every_token():
    costs = Costs(as_full_attention(InfiniteVLConfig()), torch.bfloat16)
    assert costs.state_bytes(1000) - costs.state_bytes(0) == 1000 * 36 * 2 * 2 * 128 * 2
    assert costs.token(10**6).nbytes - costs.token(0).nbytes == 10**6 * 36 * 2 * 2 * 128 * 2
    near, far = costs.frame((32, 32), 0), costs.frame((32, 32), 10**6)
    assert far.operations - near.operations == 36 * 4 * 16 * 128 * 256 * 10**6


def test_moving_on_changes_counters_alone(checkpoint: Path):
    """The far stream is the near one with later positions: the next frame costs and stores the same."""
    model = infinitevl.load(checkpoint)
    subject = StreamSubject("", model, random_frames(56))
    subject.go_to(100, lambda how: None)
    assert (subject.context, subject.stream.state.count.item()) == (100, 100)
    subject.go_to(10**6, lambda how: None)
    assert subject.context == subject.stream.state.count.item() == 10**6
    assert subject.streamed < 100
    subject.back()
    subject.see()
    assert all(tensor.isfinite().all() for tensor in subject.branch.state.tensors().values())
    assert (subject.branch.stats.tokens, subject.context) == (10**6 + 4, 10**6)
    subject.go_to(100, lambda how: None)
    assert subject.context == 100


def test_frames_are_random_and_the_same_every_time():
    first, second = random_frames(56), random_frames(56)
    assert all((a == b).all() and a.std() > 50 for a, b in zip(first, second, strict=True))
    assert len({frame.tobytes() for frame in first}) == len(first)


def test_endless_answers(checkpoint: Path):
    model = infinitevl.load(checkpoint)
    ends, stream = model.end_tokens(), Stream(model)
    with endless_answers(model):
        assert model.end_tokens() == set()
        assert stream.ask("What?", max_new_tokens=3)
    assert model.end_tokens() == ends != set()


def test_plans():
    assert contexts_up_to(2**20, 256) == [0, 4096, 16384, 65536, 262144, 2**20]
    assert contexts_up_to(100, 16) == [0, 100]
    assert contexts_up_to(0, 16) == [0]
    plan = Plan([0], ROUNDS + 2, 1.0)
    assert [plan.frames_in(n) for n in range(plan.rounds)] == [(2, 2)] * 2 + [(1, 1)] * (ROUNDS - 2)
    assert Plan([0], 3, 1.0).rounds == 3
    assert Plan([0], None, 1.0).frames_in(0) == FRAMES


def test_ceilings(monkeypatch: pytest.MonkeyPatch):
    assert all(seconds > 0 for seconds in machine.timed(lambda: sum(range(1000)), torch.device("cpu"), 3))
    monkeypatch.setattr(machine, "timed", lambda run, *_: [run() is None or 0.5, 0.25])
    cpu = torch.device("cpu")
    measured = machine.best_ceilings(cpu, torch.float32)
    assert measured == Ceilings(2 * 4 * 2**25 / 0.25, 2 * 2048**3 / 0.25)
    assert measured.source.startswith("measured")
    assert measured.best(Ceilings(1.0, 1e30)) == Ceilings(measured.bytes_per_second, 1e30)
    assert TOP.floor(1e11, 1e9) == 1.0
    assert KNOWN["NVIDIA H200"] == (4.8e12, 989e12)
    assert (machine.free_bytes(cpu) or math.inf) > 2**20


@pytest.fixture
def fla(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of fla's functions are called, by their published names and arguments, here computed by the reference."""
    called = list[str]()

    def theirs(name: str) -> Callable[..., Any]:
        def compute(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, **options):
            called.append(name)
            assert (scale, output_final_state, options) == (None, True, {"use_qk_l2norm_in_kernel": True})
            return ops.gated_delta_rule(q, k, v, g, beta, initial_state, backend="reference")

        return compute

    package: Any = ModuleType("fla.ops.gated_delta_rule")
    package.chunk_gated_delta_rule = theirs("chunk")
    package.fused_recurrent_gated_delta_rule = theirs("recurrent")
    parent: Any = ModuleType("fla.ops")
    parent.gated_delta_rule = package
    for name, module in (("fla", ModuleType("fla")), ("fla.ops", parent), ("fla.ops.gated_delta_rule", package)):
        monkeypatch.setitem(sys.modules, name, module)
    return called


def test_fla_gets_what_it_expects(fla: list[str]):
    """And rows with padding are what they are without it."""
    for time in (1, 5):
        q, k, v = torch.randn(3, 2, time, 2, 4)
        g, beta, state = -torch.rand(2, time, 2), torch.rand(2, time, 2), torch.randn(2, 2, 4, 4)
        expected = ops.gated_delta_rule(q, k, v, g, beta, state)
        with ops.using("fla"):
            found = ops.gated_delta_rule(q, k, v, g, beta, state)
        lengths = torch.tensor([time, time - 1])
        padded = ops.gated_delta_rule(q, k, v, g, beta, state, lengths=lengths, backend="fla")
        short = ops.gated_delta_rule(q, k, v, g, beta, state, lengths=lengths)
        for mine, theirs_, rows in zip(padded, short, (slice(0, 1), slice(None)), strict=True):
            torch.testing.assert_close(mine[rows], theirs_[rows], atol=1e-5, rtol=1e-5)
        for mine, theirs_ in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs_, atol=1e-5, rtol=1e-5)
    assert fla == ["recurrent", "recurrent", "chunk", "chunk"]
    for what in ({"delta": False}, {"seq_idx": torch.zeros(2, 5, dtype=torch.int64)}):
        with pytest.raises(NotImplementedError, match="no packing"):
            ops.gated_delta_rule(q, k, v, g, beta, backend="fla", **what)


def test_streams_run_by_fla(fla: list[str], checkpoint: Path):
    """Frames in chunks, tokens one by one, the same state as without it; and it is never called the usual path."""
    model = infinitevl.load(checkpoint)
    usual, compared = Stream(model, fps=None), Stream(model, fps=None)
    for picture in random_frames(56)[:3]:
        usual.see(picture)
        with ops.using("fla"):
            compared.see(picture)
    layers = model.config.text_config.layer_types.count("linear_attention")
    assert fla.count("chunk") >= 3 * layers
    said = list(usual.ask("What?", max_new_tokens=4, remember=True))
    with ops.using("fla"):
        assert list(compared.ask("What?", max_new_tokens=4, remember=True)) == said
    assert fla.count("recurrent") >= 3 * layers
    assert_same_state(compared.state, usual.state, 100 * RELATIVE[torch.float32])


def test_many_streams_at_once():
    """Weights are read once for all, states once for each; a model whose state grows has no such rows."""
    costs = Costs(InfiniteVLConfig(), torch.bfloat16)
    one, many = costs.token(8192), costs.together(costs.token(8192), 64, vision=False)
    assert many.operations == 64 * one.operations
    state = (many.nbytes - one.nbytes) / 63
    assert 100 * 2**20 < state < 400 * 2**20 < one.nbytes
    assert costs.together(one, 1, vision=False) == one
    frame = costs.frame((32, 32), 8192)
    assert costs.together(frame, 16, vision=True).nbytes < 2 * frame.nbytes
    top = Ceilings(1e10, 1e11)
    found = crowds(random_model(0, sliding_window=48, num_hidden_layers=2), 56, top, 2, 3)
    assert [(crowd.what, crowd.streams) for crowd in found] == [("frame", 2), ("token", 3)]
    assert all(crowd.ms > crowd.floor_ms > 0 for crowd in found)
    grows = random_model(0, num_hidden_layers=2, layer_types=["full_attention", "linear_attention"])
    assert crowds(grows, 56, top, 2, 3) == []
