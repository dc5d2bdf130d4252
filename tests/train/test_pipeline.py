"""A Qwen2.5-VL folder for a teacher, and files for data: all stages from the command line."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_real_media import TOKENS, picture, write_video
from train_kit import small_model

import infinitevl
from infinitevl import cli
from infinitevl.commands.train import parse
from infinitevl.data.encode import Encoder
from infinitevl.data.files import FileBatches, FilePart
from infinitevl.data.worlds import WorldBatches
from infinitevl.errors import InfiniteVLError
from infinitevl.train import pipeline, recipes
from infinitevl.train.pipeline import check
from infinitevl.train.qwen import as_qwen
from infinitevl.train.recipes import micro

Command = Callable[..., tuple[int, list[str], list[str]]]
STAGES = ("layerwise", "distillation", "sft", "long")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2.5-VL of random weights."""
    folder = tmp_path_factory.mktemp("teacher") / "qwen"
    teacher = small_model(["full_attention"] * 4, num_attention_heads=4, num_key_value_heads=2)
    as_qwen(teacher).save_pretrained(folder)
    teacher.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Exit code, lines of standard output, lines of standard error, of `infinitevl train`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("infinitevl.train.curves.find_spec", lambda name: None)
    monkeypatch.setattr("infinitevl.train.loop.LOGGERS", ())

    def run(*args: str) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["infinitevl", "train", *args])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out.splitlines(), err.splitlines()

    return run


def row(kind: str, name: str) -> dict:
    """In the format of LLaMA-Factory."""
    mark = {"images": "<image>", "videos": "<video>"}[kind]
    turns = [{"from": "human", "value": f"{mark}What is it?"}, {"from": "gpt", "value": name}]
    return {"conversations": turns, kind: [name]}


@pytest.fixture
def media(tmp_path: Path) -> None:
    """pictures.json, of which two samples in four are bad, and films.jsonl."""
    for number, size in enumerate([(80, 60), (64, 200)]):
        Image.fromarray(picture(*size, 50 * number)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    write_video(tmp_path / "film.mp4")
    rows = [row("images", name) for name in ("0.jpg", "1.jpg", "broken.jpg", "none.jpg")]
    (tmp_path / "pictures.json").write_text(json.dumps(rows))
    (tmp_path / "films.jsonl").write_text(json.dumps(row("videos", "film.mp4")) + "\n")


def quick_4b() -> recipes.Recipe:
    """The stages of the paper's recipe in two steps each."""
    small = {"steps": 2, "rows": 1, "accumulate": 1, "tokens": TOKENS}
    stages = tuple(replace(stage, **small, lora=min(stage.lora, 2)) for stage in recipes.RECIPES["4b"]().stages)
    return replace(recipes.RECIPES["4b"](), name="quick", window=16, stages=stages)


def test_all_stages_on_files(
    command: Command, qwen: Path, media: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(recipes.RECIPES, "quick", quick_4b)
    data = [f"{name}.data=pictures.json" for name in STAGES[:3]]
    code, out, err = command("quick", f"teacher={qwen}", *data, "long.data=1*pictures.json,4*films.jsonl", "workers=0")
    assert (code, out) == (0, ["runs/quick/long/model"]), err
    assert sum("samples skipped: " in line for line in err) >= 3
    for name in STAGES[:3]:
        told = [
            json.loads(line) for line in (tmp_path / "runs/quick" / name / "skipped.jsonl").read_text().splitlines()
        ]
        assert {line["name"] for line in told} <= {"pictures.json:3", "pictures.json:4"}
    model = infinitevl.load(tmp_path / "runs/quick/long/model")
    assert model.config.text_config.layer_types == ["sliding_attention", *["linear_attention"] * 3]
    assert model.config.text_config.sliding_window == 16
    assert model.config.bos_token_id is None
    assert not (tmp_path / "runs/quick/qwen").exists()
    teacher = infinitevl.load(tmp_path / "runs/quick/teacher/model")
    given = small_model(["full_attention"] * 4, num_attention_heads=4, num_key_value_heads=2).state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in teacher.state_dict().items())


def test_micro_with_a_teacher(command: Command, qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On StreamWorld, as without; begun with another teacher it does not go on."""
    quick = replace(micro(), stages=tuple(replace(stage, steps=1, rows=1, tokens=200) for stage in micro().stages))
    monkeypatch.setitem(recipes.RECIPES, "micro", lambda: quick)
    assert command("micro", f"teacher={qwen}", "workers=0")[:2] == (0, ["runs/micro/long/model"])
    assert not (tmp_path / "runs/micro/teacher/metrics.jsonl").exists()
    code, _, err = command("micro", "workers=0")
    assert (code, len(err)) == (2, 1)
    assert "was begun with teacher" in err[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "4b needs teacher=FOLDER, a Qwen2.5-VL checkpoint"),
        (["teacher=none"], "none"),
        (["teacher=QWEN"], "layerwise needs layerwise.data=FILES, such as a.json"),
        (["teacher=QWEN", *(f"{name}.data=none.json" for name in STAGES)], "none.json: no such file"),
        (["teacher=QWEN", *(f"{name}.data=odd.json" for name in STAGES)], "odd.json: not a JSON file"),
    ],
)
def test_what_is_missing_is_told_at_once(
    command: Command, qwen: Path, tmp_path: Path, changes: list[str], message: str
):
    (tmp_path / "odd.json").write_text("[{")
    code, out, err = command("4b", *(change.replace("QWEN", str(qwen)) for change in changes))
    assert (code, out, len(err)) == (2, [], 1), err
    assert message in err[0]
    assert not (tmp_path / "runs").exists()


def test_only_the_stages_that_run_need_data():
    with pytest.raises(InfiniteVLError, match=r"^teacher needs teacher\.data"):
        check(replace(micro(), stages=(replace(micro().stages[0], data=()),)))


def test_the_limits_of_data(tmp_path: Path):
    """Of files, the stage's; of StreamWorld, the size of its frames."""
    model = small_model()
    long = replace(parse("4b", ["long.data=3*a.json,b.tar"]).recipe.stages[-1], rows=1)
    files = pipeline._data(micro(), long, model, tmp_path)
    assert isinstance(files, FileBatches)
    assert files.parts == (FilePart(3.0, "a.json", fps=10.0), FilePart(1.0, "b.tar", fps=10.0))
    assert (files.rows, files.tokens, files.steps) == (1, 32_768, 4000 * 64)
    assert limits(files.encoder) == (32_768, 256 * 784, 224)
    worlds = pipeline._data(micro(), micro().stages[0], model, tmp_path)
    assert isinstance(worlds, WorldBatches)
    assert limits(worlds.encoder) == (512, 112 * 112, None)


def limits(encoder: Encoder) -> tuple[int, int, int | None]:
    return encoder.max_tokens, encoder.bounds["max_pixels"], encoder.max_frames
