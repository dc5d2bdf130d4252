"""`infinitevl train`: a recipe, with changes, through all its stages."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from infinitevl.commands.console import quiet
from infinitevl.data.files import FilePart
from infinitevl.data.forking import spare_processors
from infinitevl.errors import InfiniteVLError
from infinitevl.train.loop import Settings
from infinitevl.train.recipes import RECIPES, Recipe
from infinitevl.train.stages import Stage

LEAST = {
    "rows": 1, "tokens": 1, "window": 1, "checkpoint_every": 1, "temperature": 1e-3, "clip": 1e-6, "accumulate": 1,
    "max_pixels": 28 * 28, "max_frames": 1, "fps": 1e-3,
}  # fmt: skip
WANTED = {int: "a whole number", float: "a number"}
OPENED = ("format", "root", "split", "subset")  # settings of a source
SPECIAL = ("teacher", "data")  # fields that are read in a way of their own


@dataclass(frozen=True)
class Job:
    recipe: Recipe
    out: Path
    settings: Settings


def run(recipe: str, changes: Sequence[str]) -> int:
    job = parse(recipe, changes)
    from infinitevl.train.pipeline import run_recipe

    quiet()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers complain in every worker
    run_recipe(job.recipe, job.out, job.settings)
    click.echo(str(job.out / job.recipe.stages[-1].name / "model"))
    return 0


def parse(name: str, changes: Sequence[str]) -> Job:
    """A recipe by name, changed by texts such as out=runs/a, seed=1 and sft.steps=200. InfiniteVLError, one line."""
    if name not in RECIPES:
        raise InfiniteVLError(f"no recipe {name}: there are {', '.join(RECIPES)}")
    job = Job(RECIPES[name](), Path("runs") / name, Settings(workers=spare_processors()))
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise InfiniteVLError(f"{change}: a change is key=value, such as sft.steps=200")
        job = _changed(job, key, text)
    return job


def _changed(job: Job, key: str, text: str) -> Job:
    recipe = job.recipe
    if key == "out":
        return replace(job, out=Path(text))
    if key in _names(Settings):
        return replace(job, settings=_with(job.settings, key, key, text))
    if key in _names(Recipe):
        return replace(job, recipe=_with(recipe, key, key, text))
    part, _, field = key.partition(".")
    stages = {stage.name: stage for stage in recipe.stages}
    if part in stages and field in _names(Stage):
        stages[part] = _with(stages[part], field, key, text)
        return replace(job, recipe=replace(recipe, stages=tuple(stages.values())))
    raise InfiniteVLError(_unknown(key, part, list(stages)))


def _unknown(key: str, part: str, stages: list[str]) -> str:
    if part in stages:
        return f"{key}: a stage has {', '.join(_names(Stage))}"
    known = ", ".join(("out", *_names(Settings), *_names(Recipe)))
    return f"{key}: there are {known}, and STAGE.NAME with the stages {', '.join(stages)}"


def _names(kind: type) -> list[str]:
    """The fields that a text can set."""
    hints = {field.name: get_type_hints(kind)[field.name] for field in fields(kind)}
    return [name for name in hints if name in SPECIAL or hints[name] in WANTED or _choices(hints[name])]


def _choices(hint: Any) -> dict[str, Any]:
    """The values of a field that has only a few, by their texts."""
    if hint is bool:
        return {"true": True, "false": False}
    return {name: name for name in get_args(hint)} if get_origin(hint) is Literal else {}


def _with(value: Any, field: str, key: str, text: str) -> Any:
    hint = get_type_hints(type(value))[field]
    return replace(value, **{field: _value(hint, field, key, text)})


def _value(hint: Any, field: str, key: str, text: str) -> Any:
    if field == "teacher":
        return text
    if field == "data":
        return tuple(_part(key, source) for source in text.split(","))
    return _chosen(hint, key, text) if _choices(hint) else _number(hint, field, key, text)


def _part(key: str, text: str) -> FilePart:
    """What `open_samples` takes, such as a.json; 4*a.json with a weight; a.json?root=media with its other settings."""
    found = re.fullmatch(r"(?:(\d+\.?\d*)\*)?(.*?)(?:\?(\w+=[^?]*))?", text, re.DOTALL)
    weight, path, settings = found.groups() if found else (None, "", None)
    if not path or not float(weight or 1):
        raise InfiniteVLError(f"{key}: {text or 'nothing'} is no file, such as a.json or, with a weight, 4*a.json")
    pairs = [setting.partition("=") for setting in (settings or "").split("&") if setting]
    options: Any = {name: value for name, _, value in pairs}
    if unknown := [name for name in options if name not in OPENED]:
        raise InfiniteVLError(f"{key}: {unknown[0]} of {path}: a source has {', '.join(OPENED)}")
    return FilePart(float(weight or 1), path, **options)


def _chosen(hint: Any, key: str, text: str) -> Any:
    if text not in _choices(hint):
        raise InfiniteVLError(f"{key}={text}: it is one of {', '.join(_choices(hint))}")
    return _choices(hint)[text]


def _number(hint: type, field: str, key: str, text: str) -> Any:
    try:
        value = hint(text)
    except ValueError:
        raise InfiniteVLError(f"{key}={text}: it is {WANTED[hint]}") from None
    if not math.isfinite(value) or value < LEAST.get(field, 0):
        raise InfiniteVLError(f"{key}={text}: it is at least {LEAST.get(field, 0):g}")
    return value
