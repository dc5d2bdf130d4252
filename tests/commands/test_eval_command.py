"""`infinitevl eval`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infinitevl.commands import evaluate
from infinitevl.commands.evaluate import EvalOptions, make_plan
from infinitevl.evaluation import plan
from infinitevl.evaluation.plan import QUICK, Plan

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing", "--quick"], "no such checkpoint folder: nothing"),
        (["nothing", "--count", "0"], "not in the range"),
        (["nothing", "--rows", "many"], "not a valid integer"),
        (["nothing", "--workers", "-1"], "not in the range"),
        (["nothing", "--long-tokens", "-1"], "not in the range"),
        (["nothing", "--out", "file/out"], "cannot use file/out as a folder"),
        (["nothing", "--device", "toaster"], "toaster"),
        (["nothing", "--beside", "results.json"], "--beside results.json: it is NAME=FILE"),
        (["nothing", "--beside", "a=evaluation/results.json"], "evaluation/results.json would be overwritten"),
        (["nothing", "--beside", "teacher=gone.json"], "cannot read gone.json: No such file"),
        (["nothing", "--beside", "teacher=file"], "these are no results of an evaluation"),
    ],
)
def test_mistakes_are_one_line(run: Run, args: list[str], message: str):
    Path("file").touch()
    done = run("eval", *args)
    assert (done.code, done.out, len(done.err)) == (2, [], 1), done
    assert done.err[0].startswith("infinitevl: ")
    assert message in done.err[0]


def test_options():
    options = EvalOptions("model", Path("out"))
    assert make_plan(options) == Plan()
    assert make_plan(replace(options, quick=True)) == QUICK
    wanted = {"count": 5, "rows": 3, "long_tokens": 0, "long_streams": 2, "window_frames": 7}
    assert make_plan(replace(options, **wanted)) == Plan(**wanted)


def test_a_checkpoint(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan, "EPISODES", ())
    tiny = replace(QUICK, ages=(1,), loads=(1, 2), load_age=1, facts=2, long_tokens=0, ablations=False)
    monkeypatch.setattr(evaluate, "QUICK", tiny)
    done = run("eval", checkpoint, "--quick", "--count", 2, "--workers", 1, "--out", "found/here")
    assert done.code == 0, done
    assert done.out[-1] == str(Path("found/here/results.json"))
    results = json.loads(Path("found/here/results.json").read_text())
    assert results["plan"]["count"] == 2
    assert results["model"]["name"] == "model"
    assert Path("found/here/results.md").read_text().startswith("# model\n")
    assert Path("found/here/age.png").read_bytes().startswith(b"\x89PNG")

    again = ("eval", checkpoint, "--quick", "--count", 2, "--workers", 1)
    done = run(*again, "--beside", "other=found/here/results.json")
    assert done.code == 0, done
    told = Path("evaluation/results.md").read_text()
    assert "| windows | model | other | chance |" in told and "| cards | model | other | chance |" in told
    assert "| perception: see | " in told and "| perception: see, other | " in told
    both = json.loads(Path("evaluation/results.json").read_text())
    assert both["others"] == ["other"]
    theirs = [line["right"] for line in both["cells"] if line["variant"] == "other"]
    assert theirs == [line["right"] for line in results["cells"]]

    for options, message in (
        (("model=found/here/results.json",), "results have a column of that name"),
        (("other=found/here/results.json", "--window-frames", 3), "frames of a window"),
    ):
        done = run(*again, "--out", "no", "--beside", *options)
        assert (done.code, len(done.err)) == (2, 1) and message in done.err[0], done
