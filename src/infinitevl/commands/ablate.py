"""`infinitevl ablate`: the paper's ablations of a recipe, trained, measured and told in a table."""

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import click
from rich.console import Console

from infinitevl.commands import train
from infinitevl.commands.console import quiet
from infinitevl.data.streamworld.world import TOKEN
from infinitevl.data.worlds import VISUAL
from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation import run as evaluation
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.train import ablation_report, ablations
from infinitevl.train.ablations import Measured, Plan, Result
from infinitevl.train.loop import Settings
from infinitevl.train.recipes import Recipe

OWN = {"variants": "", "seeds": "0", "teacher": "", "long": "false", "count": "200"}
WINDOWS, CARDS = 4.0, 4  # how long ago a card was seen, and how many there were


def run(recipe: str, changes: Sequence[str]) -> int:
    plan = parse(recipe, changes)
    quiet()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers complain in every worker
    ablations.run(plan, measure, _tell)
    results = ablations.gather(plan.out)
    ablation_report.write(results, plan.out)
    Console().print(ablation_report.terminal(results))
    click.echo(str(plan.out / "ablations.md"))
    return 0


def measure(model: InfiniteVLForConditionalGeneration, plan: Plan) -> list[Measured]:
    """Perception in a few frames, and recall of cards that left the window of the baseline long ago."""
    recipe = plan.recipe
    window = max(1, recipe.window // (recipe.size // TOKEN) ** 2)
    asked = evaluation.Plan(
        count=plan.count, rows=64, size=recipe.size, ages=(WINDOWS,), facts=CARDS, loads=(), window_frames=window,
        ablations=False, long_tokens=0,
    )  # fmt: skip
    results = evaluation.evaluate_model(model, asked, workers=plan.settings.workers)
    found = {line.group: line for line in (*results.of("perception"), *results.of("memory"))}
    lines = [found[group] for group in (*VISUAL, "recall")]
    return [Measured(line.group, line.asked, line.right, line.chance) for line in lines]


def _tell(result: Result) -> None:
    found = ", ".join(f"{score.name} {score.right}/{score.asked}" for score in result.scores)
    told = f"diverged ({result.diverged})" if result.diverged else found
    click.echo(f"{result.variant}, seed {result.seed}: {told}", err=True)


def parse(name: str, changes: Sequence[str]) -> Plan:
    """The changes of `infinitevl train` and OWN ones. InfiniteVLError, one line."""
    own, others = dict(OWN), [f"out=runs/{name}-ablations"]
    for change in changes:
        key, equals, text = change.partition("=")
        _check_known(key)
        if key in OWN and equals:
            own[key] = text
        else:
            others.append(change)
    job = train.parse(name, others)
    if own["long"] not in ("true", "false"):
        raise InfiniteVLError(f"long={own['long']}: it is true or false")
    return Plan(
        recipe=job.recipe,
        variants=ablations.choose(own["variants"], job.recipe.text["num_hidden_layers"]),
        seeds=tuple(dict.fromkeys(_whole("seeds", seed) for seed in own["seeds"].split(","))),
        out=job.out,
        settings=job.settings,
        teacher=Path(own["teacher"]) if own["teacher"] else None,
        long=own["long"] == "true",
        count=_whole("count", own["count"], 1),
    )


def _check_known(key: str) -> None:
    """Of stages' settings, `infinitevl train` tells what there is."""
    known = ("out", *OWN, *(field.name for field in (*fields(Settings), *fields(Recipe))))
    if "." not in key and key not in known:
        raise InfiniteVLError(f"{key}: there are {', '.join(OWN)}, and what `infinitevl train` knows")


def _whole(key: str, text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise InfiniteVLError(f"{key}={text}: it is a whole number, at least {least}")
    return int(text)
