"""The paper's ablations: students that differ in one thing, trained with the same steps on the same batches."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from infinitevl.errors import InfiniteVLError
from infinitevl.model.convert import convert
from infinitevl.model.loading import load
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.train import keeping
from infinitevl.train.loop import Settings, accelerate
from infinitevl.train.pipeline import new_teacher, run_stage
from infinitevl.train.qwen import as_qwen
from infinitevl.train.recipes import Recipe
from infinitevl.train.stages import Stage

CHAIN, LONG = ("layerwise", "distillation", "sft"), "long"
RESULT = "result.json"
LAST = 20  # steps whose mean is the final loss of a stage
BROKE = re.compile(r"(\w+) broke at step (\d+)")  # how a stage tells of its end


@dataclass(frozen=True)
class Variant:
    """What differs from the baseline.

    every: one layer in so many attends; 0: none does; 1: all do, and to everything, so that it is the teacher.
    rule: InfiniteVLTextConfig.linear_rule. seeded: of `convert`. skipped: stages that it goes without; their steps
    are added to the last of the others, so that all variants take as many.
    """

    name: str
    about: str
    every: int = 4
    rule: str = "gated_delta"
    seeded: bool = True
    skipped: tuple[str, ...] = ()

    def layer_types(self, layers: int) -> list[str]:
        if self.every == 1:
            return ["full_attention"] * layers
        attends = [bool(self.every) and i % self.every == 0 for i in range(layers)]
        return ["sliding_attention" if kept else "linear_attention" for kept in attends]

    def stages(self, recipe: Recipe, long: bool) -> tuple[Stage, ...]:
        """The stages that it goes through. InfiniteVLError where the recipe lacks one of the chain."""
        known = {stage.name: stage for stage in recipe.stages}
        for name in (*CHAIN, LONG) if long else CHAIN:
            if name not in known:
                raise InfiniteVLError(f"recipe {recipe.name} has no stage {name}")
        *first, last = (known[name] for name in CHAIN if name not in self.skipped)
        saved = sum(known[name].steps for name in self.skipped)
        return (*first, replace(last, steps=last.steps + saved), *([known[LONG]] if long else []))


VARIANTS = (
    Variant("baseline", "1/4 attention, Gated DeltaNet, all stages"),
    Variant("no-distillation", "stage II alone", skipped=("layerwise", "distillation")),
    Variant("no-sft", "stage I alone", skipped=("sft",)),
    Variant("attention-0", "no attention", every=0),
    Variant("attention-1-8", "1/8 attention", every=8),
    Variant(
        "attention-full", "full attention: the teacher, trained on", every=1, skipped=("layerwise", "distillation")
    ),
    Variant("gated", "gated linear attention: no delta rule", rule="gated"),
    Variant("plain", "linear attention: no delta rule, no gates", rule="plain"),
    Variant("random-start", "Gated DeltaNet not seeded by the teacher", seeded=False),
)


@dataclass(frozen=True)
class Measured:
    """Right answers among `asked`; chance: of a guesser who knows the answer set."""

    name: str
    asked: int
    right: int
    chance: float


@dataclass(frozen=True)
class Result:
    """One run. diverged: "" or where; losses: the final one of each stage that was finished."""

    variant: str
    seed: int
    diverged: str
    losses: dict[str, float]
    scores: list[Measured]


@dataclass(frozen=True)
class Plan:
    """variants, seeds: every pair is a run with a folder of its own below `out`, so that processes can share them.

    teacher: a folder of a trained teacher; None: the recipe's teacher stage makes one in `out` first. A run's seed
    is that of its fresh weights and of its batches. long: end with the long stage. count: questions of each kind.
    """

    recipe: Recipe
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    out: Path
    settings: Settings
    teacher: Path | None = None
    long: bool = False
    count: int = 200

    def __post_init__(self) -> None:
        for variant in self.variants:
            variant.stages(self.recipe, self.long)  # are there


Measure = Callable[[InfiniteVLForConditionalGeneration, Plan], list[Measured]]


def choose(names: str, layers: int) -> tuple[Variant, ...]:
    """The variants of these names, separated by commas; "": all that a model of so many layers can have."""
    known = {variant.name: variant for variant in VARIANTS}
    possible = {variant.name: variant for variant in VARIANTS if variant.every <= layers}
    chosen = names.split(",") if names else list(possible)
    for name in chosen:
        if name not in known:
            raise InfiniteVLError(f"no variant {name}: there are {', '.join(known)}")
        if name not in possible:
            raise InfiniteVLError(f"{name} needs {known[name].every} layers: this model has {layers}")
    return tuple(known[name] for name in dict.fromkeys(chosen))


def run(plan: Plan, measure: Measure, tell: Callable[[Result], None]) -> None:
    """Train and measure what is not done yet, seed by seed.

    A run that diverges is a result, too. InfiniteVLError where `out` holds runs of other settings.
    """
    pairs = [(variant, seed) for seed in plan.seeds for variant in plan.variants]
    waiting = [pair for pair in pairs if not (_folder(plan, *pair) / RESULT).is_file()]
    for pair in pairs:
        if pair not in waiting:
            _pin(plan, *pair)
    if waiting:
        teacher = _teacher(plan)
        for pair in waiting:
            _pin(plan, *pair)
            tell(_done(plan, *pair, teacher, measure))


def gather(out: Path) -> list[Result]:
    """All finished runs below `out`, in the order of VARIANTS and of seeds."""
    order = [variant.name for variant in VARIANTS]
    found = [json.loads(path.read_text()) for path in out.glob(f"*/seed*/{RESULT}")]
    results = [Result(**{**values, "scores": [Measured(**score) for score in values["scores"]]}) for values in found]
    return sorted(results, key=lambda result: (order.index(result.variant), result.seed))


def folder_of(out: Path, variant: str, seed: int) -> Path:
    """Of a run."""
    return out / variant / f"seed{seed}"


def _folder(plan: Plan, variant: Variant, seed: int) -> Path:
    return folder_of(plan.out, variant.name, seed)


def _pin(plan: Plan, variant: Variant, seed: int) -> None:
    settings = {name: value for name, value in asdict(plan.recipe).items() if name != "stages"}
    settings["student"] = [variant.layer_types(plan.recipe.text["num_hidden_layers"]), variant.rule, variant.seeded]
    stages = [asdict(stage) for stage in variant.stages(plan.recipe, plan.long)]
    teacher = str(plan.teacher.absolute()) if plan.teacher else asdict(plan.recipe.stages[0])
    path = _folder(plan, variant, seed) / "settings.json"
    keeping.pin(path, {**settings, "stages": stages, "teacher": teacher, "count": plan.count})


def _teacher(plan: Plan) -> InfiniteVLForConditionalGeneration:
    device = accelerate().device
    if plan.teacher is None:
        fresh = new_teacher(plan.recipe, plan.out / "processor", device)
        return run_stage(plan.recipe, plan.recipe.stages[0], fresh, None, plan.out, plan.settings)
    teacher = load(plan.teacher, device=device, dtype=torch.float32)
    if set(teacher.config.text_config.layer_types) != {"full_attention"}:
        raise InfiniteVLError(f"{plan.teacher} is no teacher: not all its layers are full_attention")
    return teacher


def _done(
    plan: Plan, variant: Variant, seed: int, teacher: InfiniteVLForConditionalGeneration, measure: Measure
) -> Result:
    """One run, written to its folder."""
    folder, recipe = _folder(plan, variant, seed), replace(plan.recipe, seed=seed)
    stages, diverged = variant.stages(recipe, plan.long), ""
    student = new_student(variant, recipe, teacher, folder)
    try:
        for stage in stages:
            needed = teacher if stage.needs_teacher else None
            student = run_stage(recipe, stage, student, needed, folder, plan.settings)
    except InfiniteVLError as error:
        diverged = _where(error)
    losses = {stage.name: _final_loss(folder / stage.name) for stage in stages if _model(folder, stage).is_dir()}
    scores = [] if diverged else measure(student.eval(), plan)
    result = Result(variant.name, seed, diverged, losses, scores)
    keeping.replace(folder / RESULT, lambda path: path.write_text(json.dumps(asdict(result), indent=2) + "\n"))
    _tidy(folder, stages)
    return result


def new_student(
    variant: Variant, recipe: Recipe, teacher: InfiniteVLForConditionalGeneration, folder: Path
) -> InfiniteVLForConditionalGeneration:
    """The teacher converted, kept in folder/student."""
    options: dict[str, Any] = {
        "layer_types": variant.layer_types(teacher.config.text_config.num_hidden_layers),
        "linear_rule": variant.rule, "seeded": variant.seeded, "seed": recipe.seed, "sliding_window": recipe.window,
    }  # fmt: skip
    if not (folder / "student").is_dir():
        with TemporaryDirectory(dir=folder) as qwen:
            as_qwen(teacher).save_pretrained(qwen)
            teacher.processor.save_pretrained(qwen)
            convert(Path(qwen), folder / "student", **options)
    return keeping.load_model(folder / "student", teacher)


def _where(error: InfiniteVLError) -> str:
    """Where a stage diverged, in a few words; every other error is raised again."""
    told = BROKE.match(str(error))
    if told is None:
        raise error
    return f"{told[1]}, step {told[2]}"


def _model(folder: Path, stage: Stage) -> Path:
    return folder / stage.name / keeping.MODEL


def _final_loss(folder: Path) -> float:
    return fmean(point.loss for point in keeping.read_metrics(folder / keeping.METRICS)[-LAST:])


def _tidy(folder: Path, stages: tuple[Stage, ...]) -> None:
    """Of the weights on the way, only the last are kept."""
    for path in (folder / "student", *(_model(folder, stage) for stage in stages[:-1])):
        shutil.rmtree(path, ignore_errors=True)
    for stage in stages:
        (folder / stage.name / keeping.CHECKPOINT).unlink(missing_ok=True)
