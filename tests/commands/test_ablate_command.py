"""`infinitevl ablate`: a microscopic recipe, its table, going on, and a variant that diverges."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import infinitevl
from infinitevl.commands import ablate
from infinitevl.commands.ablate import parse
from infinitevl.train import ablations, loop, recipes
from infinitevl.train.ablations import Measured
from infinitevl.train.loop import Settings
from infinitevl.train.pipeline import new_teacher, run_stage

Run = Callable[..., Any]
QUICK = ("quick", "workers=0", "count=4", "out=out")


def quick() -> recipes.Recipe:
    """The micro recipe in two steps a stage."""
    recipe = recipes.micro()
    stages = tuple(replace(stage, steps=2, rows=1, tokens=200) for stage in recipe.stages)
    return replace(recipe, name="quick", stages=stages, vocabulary=400)


@pytest.fixture(autouse=True)
def quick_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.RECIPES, "quick", quick)
    monkeypatch.setattr(loop, "draw", lambda *_: False)  # pictures of losses take longer than all the rest


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe, out = quick(), tmp_path_factory.mktemp("trained")
    fresh = new_teacher(recipe, out / "processor", torch.device("cpu"))
    run_stage(recipe, recipe.stages[0], fresh, None, out, Settings())
    return out / "teacher" / "model"


def table(out: Path) -> dict[str, Any]:
    return {row["variant"]: row for row in json.loads((out / "ablations.json").read_text())["variants"]}


def test_a_table_and_going_on(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Part of the work, then all of it: nothing is done twice, and the last call only gathers."""
    done = run("ablate", *QUICK, "variants=baseline")
    assert (done.code, done.out[-1]) == (0, "out/ablations.md")
    assert any(line.startswith("baseline, seed 0: read ") for line in done.err)

    trained, run_stage = [], ablations.run_stage

    def counted(recipe: Any, stage: Any, *rest: Any) -> Any:
        trained.append(f"{stage.name} {stage.steps}")
        return run_stage(recipe, stage, *rest)

    monkeypatch.setattr(ablations, "run_stage", counted)
    wanted = ("ablate", *QUICK, "variants=attention-0,no-sft,baseline")
    assert run(*wanted).code == 0
    assert trained == ["teacher 2", "layerwise 2", "distillation 2", "sft 2", "layerwise 2", "distillation 4"]
    assert run(*wanted).code == 0
    assert len(trained) == 6

    found = table(tmp_path / "out")
    assert list(found) == ["baseline", "no-sft", "attention-0"]
    for row in found.values():
        assert list(row["accuracy"]) == ["read", "see", "move", "recall"]
        assert (row["seeds"], row["diverged"]) == (1, [])
    assert list(found["no-sft"]["losses"]) == ["layerwise", "distillation"]
    written = (tmp_path / "out" / "ablations.md").read_text()
    assert all(f"| {name} |" in written for name in ("chance", *found))
    for figure in ("ablations.png", "losses.png"):
        assert (tmp_path / "out" / figure).stat().st_size > 10_000 and f"]({figure})" in written
    assert (
        infinitevl.load(tmp_path / "out/no-sft/seed0/distillation/model").config.text_config.layer_types[0][0] == "s"
    )
    assert len(list((tmp_path / "out").glob("*/seed0/*/model"))) == 3  # of each variant the last

    other = run("ablate", *QUICK, "variants=baseline", "sft.steps=3")
    assert (other.code, len(other.err)) == (2, 1)
    assert "out/baseline/seed0 was begun with stages" in other.err[0]


def test_divergence_is_a_result(run: Run, monkeypatch: pytest.MonkeyPatch, teacher: Path, tmp_path: Path):
    """Of two variants that begin from a given teacher, one goes on to be measured."""
    monkeypatch.setattr(ablate, "measure", lambda model, plan: [Measured("recall", plan.count, 1, 0.0)])
    wild = ("variants=gated,no-sft", f"teacher={teacher}", "seeds=1", "sft.learning_rate=1e30")
    done = run("ablate", *QUICK, *wild)
    assert done.code == 0
    assert "gated, seed 1: diverged (sft, step 2)" in done.err
    assert not (tmp_path / "out" / "teacher").exists()
    found = table(tmp_path / "out")
    assert (found["gated"]["diverged"], found["gated"]["accuracy"]) == (["sft, step 2"], {})
    assert list(found["gated"]["losses"]) == ["layerwise", "distillation"]
    assert found["no-sft"]["accuracy"]["recall"]["mean"] == 0.25
    assert "diverged at sft, step 2" in (tmp_path / "out" / "ablations.md").read_text()


def test_a_student_is_no_teacher(run: Run, checkpoint: Path, tmp_path: Path):
    done = run("ablate", *QUICK, f"teacher={checkpoint}")
    assert (done.code, len(done.err)) == (2, 1)
    assert f"{checkpoint} is no teacher: not all its layers are full_attention" in done.err[0]
    assert not (tmp_path / "out").exists()


def test_changes():
    plan = parse(
        "nano", ["seeds=0,2,2", "variants=gated", "count=8", "long=true", "out=a", "workers=3", "sft.steps=7"]
    )
    assert (plan.seeds, plan.long, plan.teacher, plan.count, plan.out) == ((0, 2), True, None, 8, Path("a"))
    assert [variant.name for variant in plan.variants] == ["gated"]
    assert (plan.settings.workers, plan.recipe.stages[3].steps) == (3, 7)
    plan = parse("micro", ["teacher=here"])
    assert (plan.out, plan.teacher) == (Path("runs/micro-ablations"), Path("here"))
    assert len(plan.variants) == len(ablations.VARIANTS) - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["varients=gated"], "varients: there are variants, seeds, teacher, long, count, and what `infinitevl train`"),
        (["variants=mamba"], "no variant mamba: there are baseline"),
        (["seeds=0,"], "seeds=: it is a whole number, at least 0"),
        (["seeds=-1"], "seeds=-1: it is a whole number, at least 0"),
        (["count=few"], "count=few: it is a whole number, at least 1"),
        (["count=0"], "count=0: it is a whole number, at least 1"),
        (["long=yes"], "long=yes: it is true or false"),
        (["variants"], "variants: a change is key=value"),
        (["sft.lr=1"], "sft.lr: a stage has loss"),
        (["teacher=nowhere/at/all"], "no such checkpoint folder: nowhere/at/all"),
    ],
)
def test_a_mistake_is_one_line(run: Run, changes: list[str], message: str):
    done = run("ablate", "micro", *changes)
    assert (done.code, done.out, len(done.err)) == (2, [], 1)
    assert message in done.err[0]


def test_help(run: Run):
    found = run("ablate", "--help")
    assert (found.code, found.err) == (0, [])
    assert all(f"{key}=" in "\n".join(found.out) for key in ablate.OWN)
