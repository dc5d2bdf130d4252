"""`infinitevl train`: recipes, changes, and a whole pipeline in a few steps."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import infinitevl
from infinitevl import cli
from infinitevl.commands.train import Job, parse
from infinitevl.data.files import FilePart
from infinitevl.errors import InfiniteVLError
from infinitevl.train import loop, recipes
from infinitevl.train.recipes import LONG, micro, nano

Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Exit code, lines of standard output, lines of standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*args: str) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["infinitevl", "train", *args])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out.splitlines(), err.splitlines()

    return command


def test_changes():
    job = parse("micro", ["out=a/b", "workers=8", "seed=1", "sft.steps=200", "teacher.learning_rate=3e-4"])
    assert (job.out, job.settings.workers, job.recipe.seed) == (Path("a/b"), 8, 1)
    stages = {stage.name: stage for stage in job.recipe.stages}
    assert (stages["sft"].steps, stages["teacher"].learning_rate) == (200, 3e-4)
    before = {stage.name: stage for stage in micro().stages}
    assert replace(stages["sft"], steps=before["sft"].steps) == before["sft"]
    assert stages["distillation"] == before["distillation"]
    assert parse("nano", ["long.trains=language"]).recipe.stages[-1].trains == "language"
    assert parse("nano", []) == Job(nano(), Path("runs/nano"), parse("nano", []).settings)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mega"], "no recipe mega: there are nano, micro, 4b"),
        (["micro", "sft"], "sft: a change is key=value"),
        (
            ["micro", "lr=1"],
            "lr: there are out, workers, checkpoint_every, window, size, vocabulary, seed, teacher, and ",
        ),
        (["micro", "text=1"], "text: there are out"),
        (["micro", "tail.steps=1"], "the stages teacher, layerwise, distillation, sft, long"),
        (["micro", "sft.lr=1"], "sft.lr: a stage has loss, trains, data, steps"),
        (["micro", "sft.data="], "sft.data: nothing is no file, such as a.json or, with a weight, 4*a.json"),
        (["micro", "sft.data=a.json,0*b.json"], "sft.data: 0*b.json is no file"),
        (["micro", "sft.data=none.json"], "none.json: no such file"),
        (["micro", "sft.data=a.json?rot=b"], "sft.data: rot of a.json: a source has format, root, split, subset"),
        (["micro", "sft.data=a.json?root=nowhere"], "nowhere: no such folder"),
        (["micro", "sft.checkpointing=yes"], "sft.checkpointing=yes: it is one of true, false"),
        (["micro", "sft.max_pixels=100"], "sft.max_pixels=100: it is at least 784"),
        (["micro", "sft.name=1"], "sft.name: a stage has loss"),
        (["micro", "sft.steps=2.5"], "sft.steps=2.5: it is a whole number"),
        (["micro", "sft.learning_rate=fast"], "sft.learning_rate=fast: it is a number"),
        (["micro", "sft.learning_rate=nan"], "sft.learning_rate=nan: it is at least 0"),
        (["micro", "sft.rows=0"], "sft.rows=0: it is at least 1"),
        (["micro", "workers=-1"], "workers=-1: it is at least 0"),
        (["micro", "sft.trains=some"], "sft.trains=some: it is one of all, delta, language"),
        (["micro", "size=100"], "size=100: it is a multiple of 28"),
        ([], "Missing argument 'RECIPE'"),
    ],
)
def test_a_mistake_is_one_line(run: Run, args: list[str], message: str):
    code, out, err = run(*args)
    assert (code, out, len(err)) == (2, [], 1)
    assert message in err[0]


def test_what_the_machine_lacks_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder, because a file has its name; a package that training needs. Any other package is a fault of ours."""
    (tmp_path / "taken").touch()
    assert run("micro", "out=taken") == (2, [], ["infinitevl: taken: File exists"])

    def broken(name: str) -> Callable[..., None]:
        def fail(*_: Any) -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return fail

    monkeypatch.setattr("infinitevl.commands.train.run", broken("accelerate"))
    assert run("micro") == (2, [], ["infinitevl: accelerate is missing: pip install 'infinitevl[train]'"])
    monkeypatch.setattr("infinitevl.commands.train.run", broken("torch"))
    with pytest.raises(ModuleNotFoundError):
        run("micro")


def test_help(run: Run):
    code, out, _ = run("--help")
    assert code == 0
    assert "sft.steps=200" in "\n".join(out)


def quick() -> recipes.Recipe:
    """The micro recipe, smaller still and in a few steps."""
    stages = tuple(replace(stage, steps=3, rows=1, tokens=200) for stage in micro().stages)
    return replace(micro(), name="quick", stages=stages, vocabulary=400)


class Killed(BaseException):
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return infinitevl.load(folder).state_dict()


def test_a_recipe(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """All stages; killed in the middle of the last and run again, it ends with the same weights."""
    monkeypatch.setitem(recipes.RECIPES, "quick", quick)
    code, out, err = run("quick", "workers=0", "sft.learning_rate=1e-3")
    assert (code, out) == (0, ["runs/quick/long/model"])
    names = [stage.name for stage in quick().stages]
    for name in names:
        assert any(line.startswith(f"{name}: 3 steps of ") for line in err)
        assert (tmp_path / "runs/quick" / name / "loss.png").stat().st_size > 10_000
        model = infinitevl.load(tmp_path / "runs/quick" / name / "model")
        assert len("".join(model.stream().ask("What?", max_new_tokens=2))) >= 0
    assert any(" visual.blocks.N.attn, N = 0 1" in line for line in err)

    points = loop._Run._points

    def killed(self: Any, data: Any) -> Any:
        for point in points(self, data):
            yield point
            if self.stage.name == "long" and point.step == 2:
                raise Killed

    arguments = ("quick", "workers=0", "checkpoint_every=1", "out=again", "sft.learning_rate=1e-3")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop._Run, "_points", killed)
        patched.setattr(sys, "argv", ["infinitevl", "train", *arguments])
        cli.main()
    assert (tmp_path / "again/long/checkpoint.pt").exists()
    assert run(*arguments)[0] == 0
    for name in names:
        expected, found = (weights(tmp_path / folder / name / "model") for folder in ("runs/quick", "again"))
        assert all(torch.equal(found[key], expected[key]) for key in expected), name

    code, _, err = run("quick", "seed=1", "workers=0", "sft.learning_rate=1e-3")
    assert (code, err) == (2, [err[0]])
    assert "runs/quick was begun with seed 0, not 1" in err[0]


def test_data_in_files():
    stages = {
        stage.name: stage
        for stage in parse("4b", ["sft.data=a.json,b.jsonl", "long.data=4*a.json,1.5**.tar"]).recipe.stages
    }
    assert stages["sft"].data == (FilePart(1, "a.json"), FilePart(1, "b.jsonl"))
    assert stages["long"].data == (FilePart(4, "a.json"), FilePart(1.5, "*.tar"))
    assert parse("micro", ["sft.data=*.tar"]).recipe.stages[3].data == (FilePart(1, "*.tar"),)
    tars, hub = parse("micro", ["sft.data=a-???.tar,2*org/name?format=hf&subset=s&split=dev"]).recipe.stages[3].data
    assert (tars, hub) == (FilePart(1, "a-???.tar"), FilePart(2, "org/name", format="hf", subset="s", split="dev"))
    elsewhere = parse("micro", ["sft.data=a.json?root=media"]).recipe.stages[3].data
    assert elsewhere == (FilePart(1, "a.json", root="media"),)


def test_the_papers_recipe():
    """Its table of hyper-parameters."""
    recipe = parse("4b", ["teacher=Qwen2.5-VL-3B"]).recipe
    table = [
        (stage.loss, stage.trains, stage.learning_rate, stage.rows * stage.accumulate, stage.tokens, stage.max_pixels)
        for stage in recipe.stages
    ]
    assert table == [
        ("layerwise", "delta", 2e-4, 64, 8192, 512 * 512),
        ("distillation", "delta", 2e-4, 64, 8192, 512 * 512),
        ("cross_entropy", "language", 5e-5, 256, 8192, 1344 * 1344),
        ("cross_entropy", "language", 2e-5, 64, 32768, 256 * 28 * 28),
    ]
    assert all(s.optimizer == "adamw" and (s.warmup, s.weight_decay) == (0.05, 0.01) for s in recipe.stages)
    assert recipe.stages[1].temperature == 2
    assert [bool(stage.lora) for stage in recipe.stages] == [False, False, False, True]
    assert (recipe.stages[-1].fps, recipe.stages[-1].max_frames) == (10, 224)
    assert (recipe.window, recipe.teacher) == (8192, "Qwen2.5-VL-3B")
    assert all(stage.checkpointing for stage in recipe.stages)


@pytest.mark.parametrize("recipe", [nano(), micro()], ids=["nano", "micro"])
def test_the_recipes_follow_the_paper(recipe: recipes.Recipe):
    order = [(stage.loss, stage.trains) for stage in recipe.stages]
    assert order[:4] == [
        ("cross_entropy", "all"), ("layerwise", "delta"), ("distillation", "delta"), ("cross_entropy", "language"),
    ]  # fmt: skip
    assert len({stage.name for stage in recipe.stages}) == len(recipe.stages)


def test_long_episodes_are_a_fifth():
    """The paper's stage III: 4 parts of stage II's data, 1 part long video."""
    parts = nano().stages[-1].data
    assert sum(part.weight for part in parts if part in LONG) == pytest.approx(
        0.2 * sum(part.weight for part in parts)
    )


def test_an_unknown_key_names_what_there_is():
    with pytest.raises(InfiniteVLError, match="there are out"):
        parse("micro", ["=3"])
