"""Two processes train as one does: each on its rows with the whole model (DDP), or with parts of it (FSDP2)."""

import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from parallel_script import CASES, KINDS, Dealt, evaluate, train
from safetensors.torch import load_file
from train_kit import small_model, stage

import infinitevl
from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation.results import Results
from infinitevl.train import loop
from infinitevl.train.keeping import CHECKPOINT, METRICS, read_metrics, save_checkpoint
from infinitevl.train.loop import Settings, train_stage
from infinitevl.train.parallel import joined, shared, whole

SCRIPT = Path(__file__).with_name("parallel_script.py")


def launch(out: Path, processes: int = 2) -> None:
    """As torchrun does, and `accelerate launch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1, "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    running = []
    for rank in range(processes):
        own = {
            **os.environ,
            **{key: str(value) for key, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()},
        }
        command = [sys.executable, str(SCRIPT), str(out)]
        running.append(subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    told = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(told)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders one, ddp and fsdp, each with a folder for every case."""
    out = tmp_path_factory.mktemp("parallel")
    launch(out)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("infinitevl.train.curves.find_spec", lambda name: None)
        patched.setattr(loop, "LOGGERS", ())
        patched.setattr("infinitevl.evaluation.figures.find_spec", lambda name: None)
        evaluate(out / "one")
        for name in CASES:
            train(name, out / "one")
    return out


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_as_one_process(runs: Path, kind: str, name: str):
    """Losses, norms, tokens and weights; that of cross-entropy was killed and went on."""
    found, expected = (read_metrics(runs / which / name / METRICS) for which in (kind, "one"))
    for mine, theirs in zip(found, expected, strict=True):
        values = {**asdict(theirs), "tokens_per_second": mine.tokens_per_second}
        assert asdict(mine) == pytest.approx(values, rel=1e-5)
    mine, theirs = (load_file(runs / which / name / "model/model.safetensors") for which in (kind, "one"))
    assert mine.keys() == theirs.keys()
    squares = [((mine[key] - theirs[key]).square().sum(), theirs[key].square().sum()) for key in theirs]
    distance, size = (float(sum(part).sqrt()) for part in zip(*squares, strict=True))
    assert distance <= 1e-5 * size
    assert not (runs / kind / name / CHECKPOINT).exists()


def test_an_evaluation_is_shared(runs: Path):
    """Every question is asked once, by one of the processes; each watches some of the streams."""
    mine, theirs = (
        Results.from_json((runs / which / "evaluation/results.json").read_text()) for which in ("ddp", "one")
    )
    assert sum(line.asked for line in mine.cells) > 60
    assert (mine.cells, mine.kinds, mine.held_out) == (theirs.cells, theirs.kinds, theirs.held_out)
    assert len(mine.norms) == len(theirs.norms) > 10
    for found, expected in zip(mine.norms, theirs.norms, strict=True):
        assert (found.variant, found.frames) == (expected.variant, expected.frames)
        assert found.layers == pytest.approx(expected.layers, rel=1e-5)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_the_model_is_whole(runs: Path, kind: str):
    model = infinitevl.load(runs / kind / "cross_entropy" / "model")
    assert len("".join(model.stream().ask("What?", max_new_tokens=2))) >= 0


def test_another_number_of_processes_cannot_go_on(tmp_path: Path):
    save_checkpoint(tmp_path / CHECKPOINT, {"data": [None, None]})
    student = small_model(KINDS)
    with pytest.raises(InfiniteVLError, match="was begun by 2 processes: go on with as many"):
        train_stage(stage(), student, None, Dealt(student, 6), tmp_path, Settings())


def test_rows_are_shared_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    student = small_model(KINDS)
    with pytest.raises(InfiniteVLError, match=r"^test: 2 processes cannot share 3 rows$"):
        train_stage(replace(stage(), rows=3), student, None, Dealt(student, 6, 3), tmp_path, Settings())


def test_ordinary_tensors_are_left_alone():
    tensor = torch.ones(2)
    assert joined(tensor) is tensor
    assert shared(tensor, torch.zeros(2)) is tensor
    assert whole({"a": [tensor, 1]}, kept=False) == {"a": [tensor, 1]}
