"""`infinitevl speedrun`: a microscopic recipe from nothing to its report, which is kept, and mistakes in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infinitevl.commands import speedrun
from infinitevl.commands.aims import aims
from infinitevl.commands.speedrun import parse
from infinitevl.evaluation import figures
from infinitevl.evaluation.plan import QUICK, Plan
from infinitevl.evaluation.results import Results
from infinitevl.evaluation.scores import Line
from infinitevl.train import loop, pipeline, recipes, report

Run = Callable[..., Any]
STAGES = ["teacher", "layerwise", "distillation", "sft", "long"]
TINY = Plan(
    count=2, rows=8, ages=(0.5, 1), facts=2, loads=(), long_tokens=512, long_streams=2, long_ages=(1,), asking=32,
    ablations=False,
)  # fmt: skip


def tiny() -> recipes.Recipe:
    """The micro recipe in two steps a stage."""
    recipe = recipes.micro()
    stages = tuple(replace(stage, steps=2, rows=1, tokens=200) for stage in recipe.stages)
    return replace(recipe, name="tiny", stages=stages, vocabulary=400)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained and evaluated."""
    happened = []
    train, evaluate = loop._Run.train, speedrun.evaluate_model

    def trained(run: Any, data: Any) -> None:
        happened.append(run.stage.name)
        train(run, data)

    def evaluated(model: Any, plan: Plan, out: Path, *rest: Any) -> Results:
        happened.append(str(out))
        return evaluate(model, plan, out, *rest)

    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny)
    monkeypatch.setitem(speedrun.PLANS, "quick", TINY)
    monkeypatch.setattr(loop._Run, "train", trained)
    monkeypatch.setattr(speedrun, "evaluate_model", evaluated)
    monkeypatch.setattr(speedrun, "WINDOWS", 1)
    monkeypatch.setattr(loop, "draw", lambda *_: False)  # pictures take longer than all the rest
    monkeypatch.setattr(figures, "find_spec", lambda _: None)
    monkeypatch.setattr(report, "draw_losses", lambda stages, out: stages == STAGES)
    return happened


def test_from_nothing_to_a_report_which_is_kept(run: Run, done: list[str], tmp_path: Path):
    wanted = ("speedrun", "tiny", "out=out", "workers=0")
    found = run(*wanted)
    assert (found.code, found.out) == (0, ["out/report.md"])
    assert [line for line in found.err if "evaluated in" in line] == found.err[-3:]
    assert done == [*STAGES, "out/teacher/eval", "out/sft/eval", "out/eval"]

    text, numbers = (tmp_path / "out/report.md").read_text(), json.loads((tmp_path / "out/report.json").read_text())
    assert [stage["name"] for stage in numbers["stages"]] == STAGES
    for stage in numbers["stages"]:
        assert stage["flops_per_token"] > 1e6
        lines = (tmp_path / "out" / stage["name"] / "metrics.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        assert (stage["steps"], stage["tokens"]) == (2, points[-1]["tokens"])
        assert stage["loss"] == pytest.approx((points[0]["loss"] + points[1]["loss"]) / 2)
    measured = [aim["about"] for aim in numbers["aims"]]
    assert measured[:3] == ["teacher: read", "teacher: see", "teacher: move"]
    assert measured[3] == "student after II: read (the teacher guesses)"
    assert measured[6:] == ["recall: 2 facts, 1 windows old", "recall after 512 tokens, 1 windows old: model"]
    assert "| sft (II) | cross entropy | 2 |" in text
    assert "![Losses](losses.png)" in text

    done.clear()
    assert run(*wanted).code == 0
    assert done == []
    assert (tmp_path / "out/report.md").read_text() == text


def test_results_are_kept_for_the_same_weights_and_plan(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    asked = []

    def evaluate(model: Any, plan: Plan, out: Path, *_: Any) -> Results:
        asked.append(plan)
        found = Results({}, plan, 1)
        out.mkdir(exist_ok=True)
        (out / "results.json").write_text(found.to_json())
        return found

    monkeypatch.setattr(speedrun, "evaluate_model", evaluate)
    out = tmp_path / "eval"
    for plan, times in ((TINY, 1), (TINY, 1), (QUICK, 2), (QUICK, 2)):
        assert speedrun.evaluated(checkpoint, plan, out, 0).plan == plan
        assert len(asked) == times
    (out / "model.sha256").write_text("of other weights")
    speedrun.evaluated(checkpoint, QUICK, out, 0)
    assert asked == [TINY, QUICK, QUICK]


def test_without_evaluation(run: Run, done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Nor steps."""
    steps = [f"{name}.steps=0" for name in STAGES]
    monkeypatch.setattr(speedrun, "count_flops", lambda *_: dict.fromkeys(STAGES))
    assert run("speedrun", "tiny", "out=out", "workers=0", "eval=none", *steps).code == 0
    assert done == STAGES
    assert "Nothing was evaluated (eval=none)." in (tmp_path / "out/report.md").read_text()


def test_without_matplotlib(run: Run, done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for module in (speedrun, report):
        monkeypatch.setattr(module, "find_spec", lambda _: None)
    monkeypatch.setattr(pipeline, "run_recipe", lambda *_: SimpleNamespace(device=torch.device("cpu")))
    monkeypatch.setattr(
        speedrun, "make_report", lambda *_: report.Report("tiny", report.Device("CPU"), [], [], {}, None)
    )
    found = run("speedrun", "tiny", "out=out", "eval=none")
    assert found.err == ["infinitevl: warning: no figures without matplotlib: pip install 'infinitevl[train]'"]
    assert done == []


def test_how_much_is_evaluated():
    job, plan = parse("nano", ["seed=3", "out=here"])
    assert (job.recipe.seed, job.out, plan) == (3, Path("here"), Plan())
    assert parse("micro", [])[1] == QUICK
    assert parse("micro", ["size=224", "eval=full"])[1] == Plan(size=224)
    assert parse("nano", ["eval=none"])[1] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["big"], "no recipe big: there are nano, micro"),
        (["micro", "eval=all"], "eval=all: it is one of quick, full, none"),
        (["micro", "eval"], "eval: a change is key=value"),
        (["micro", "sft.lr=1"], "sft.lr: a stage has loss"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: list[str], message: str):
    found = run("speedrun", *arguments)
    assert (found.code, found.out, len(found.err)) == (2, [], 1)
    assert message in found.err[0]


def line(test: str, group: str, accuracy: float, variant: str = "model", **cell: Any) -> Line:
    place = {"windows": None, "cards": None, "tokens": None, **cell}
    low, high = max(0.0, accuracy - 0.005), min(1.0, accuracy + 0.005)
    return Line(test, group, variant, **place, kind=None, held_out=None, asked=1000, right=round(1000 * accuracy),
                accuracy=accuracy, low=low, high=high, chance=0.01, age=0.0)  # fmt: skip


def results(*lines: Line, reach: int = 4) -> Results:
    return Results({"reach": reach}, Plan(), 16, cells=list(lines))


def seen(*shares: float) -> Results:
    return results(*(line("perception", *pair) for pair in zip(("read", "see", "move"), shares, strict=True)))


def test_aims_are_judged():
    old = {"cards": 8, "windows": 16}
    long = {"tokens": 500_000, "windows": 16}
    last = results(
        line("memory", "recall", 0.95, **old), line("memory", "recall", 0.3, **{**old, "windows": 1}),
        line("memory", "recall", 0.02, "amnesic", **old), line("memory", "recall", 0.1, "reset", **old),
        line("length", "recall", 0.4, "reset every 64 windows", **long), line("length", "recall", 0.5, **long),
        line("length", "recall", 0.9, **{**long, "tokens": 125_000}),
    )  # fmt: skip
    found = {aim.about: aim for aim in aims(seen(0.97, 0.99, 0.9), seen(0.96, 0.97, 0.95), last)}
    verdicts = {about: aim.met for about, aim in found.items()}
    assert verdicts == {
        "teacher: read": True, "teacher: see": True, "teacher: move": False,
        "student after II: read": True, "student after II: see": False, "student after II: move": True,
        "recall: 8 facts, 16 windows old": True, "recall: 8 facts, 16 windows old, amnesic": True,
        "recall after 500,000 tokens, 16 windows old: model": None,
        "recall after 500,000 tokens, 16 windows old: reset every 64 windows": None,
    }  # fmt: skip
    assert found["teacher: move"].missed == "teacher: move: 90.0% is 7.0 points short of 97%."
    assert "2.0 points behind the teacher" in found["student after II: see"].missed
    assert found["student after II: see"].value == pytest.approx(-2.0)
    assert found["teacher: read"].missed == ""


def test_an_amnesic_model_that_remembers():
    """It misses its aim, unless attention reaches that far back."""
    old, teacher = {"cards": 8, "windows": 16}, seen(1.0, 1.0, 1.0)
    lines = [line("memory", "recall", 0.5, "amnesic", **old)]
    *_, aim = aims(teacher, None, results(*lines))
    assert (aim.met, aim.missed) == (
        False,
        "recall: 8 facts, 16 windows old, amnesic: 50.0% is above the chance of 1.0%.",
    )
    *_, aim = aims(teacher, None, results(*lines, reach=16))
    assert (aim.met, aim.missed) == (None, "")


def test_who_guesses_meets_nothing():
    """To be no worse than a teacher that guesses, or to know as little without the memory as with it."""
    old = {"cards": 8, "windows": 16}
    last = results(line("memory", "recall", 0.02, **old), line("memory", "recall", 0.01, "amnesic", **old))
    found = aims(seen(0.0, 0.02, 0.9), seen(0.0, 0.03, 0.9), last)
    verdicts = {aim.about: aim.met for aim in found}
    assert verdicts == {
        "teacher: read": False, "teacher: see": False, "teacher: move": False,
        "student after II: read (the teacher guesses)": None, "student after II: see (the teacher guesses)": None,
        "student after II: move": True, "recall: 8 facts, 16 windows old": False,
        "recall: 8 facts, 16 windows old, amnesic (the model guesses, too)": None,
    }  # fmt: skip
    assert all(aim.missed == "" for aim in found if aim.met is None)
