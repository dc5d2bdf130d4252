"""`infinitevl speedrun`: a recipe through all stages, tested, and told in a report. What is done is kept."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path

import click
import torch
from rich.console import Console

from infinitevl.commands import console, train
from infinitevl.commands.aims import aims
from infinitevl.commands.train import Job
from infinitevl.data.streamworld.world import TOKEN
from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation.plan import QUICK, Plan
from infinitevl.evaluation.results import Results
from infinitevl.evaluation.run import evaluate_model
from infinitevl.evaluation.sharing import rank_and_count
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.train import keeping, report
from infinitevl.train.flops import countable, device_name, flops_per_token, peak
from infinitevl.train.keeping import MODEL
from infinitevl.train.loop import accelerate
from infinitevl.train.recipes import TEACHER, Recipe
from infinitevl.train.report import Device, Report
from infinitevl.train.stages import Stage

EVALUATION, RESULTS, FINGERPRINT, FLOPS = "eval", "results.json", "model.sha256", "flops.json"
PLANS = {"quick": QUICK, "full": Plan(), "none": None}
STUDENT = "sft"  # the stage after which the student is compared with the teacher
WINDOWS, FACTS = 4, 4  # of the recall in that comparison
FIGURES = {"age": "Recall by age", "load": "Recall by number of facts", "length": "Recall in long streams",
           "norm": "Norm of the memory"}  # fmt: skip


@dataclass(frozen=True)
class Evaluated:
    """Of the teacher, of the model after STUDENT, where there is one, and of the last."""

    teacher: Results
    student: Results | None
    last: Results

    @property
    def seconds(self) -> float:
        """Of each evaluation once."""
        found = {id(results): results for results in (self.teacher, self.student, self.last) if results}
        return sum(sum(results.seconds.values()) for results in found.values())


def run(recipe: str, changes: Sequence[str]) -> int:
    job, plan = parse(recipe, changes)
    from infinitevl.train.pipeline import run_recipe

    if find_spec("matplotlib") is None:
        console.warn("no figures without matplotlib: pip install 'infinitevl[train]'")
    console.quiet()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers complain in every worker
    model = run_recipe(job.recipe, job.out, job.settings)
    accelerator = accelerate()
    found = evaluate(job, plan) if plan else None
    if accelerator.is_main_process:
        device = Device(device_name(model.device), accelerator.num_processes, peak(model.device))
        click.echo(str(report.write(make_report(job, model, found, device), job.out)))
    return 0


def parse(name: str, changes: Sequence[str]) -> tuple[Job, Plan | None]:
    """The changes of `infinitevl train`, and eval=quick, full or none. InfiniteVLError, one line."""
    wanted = "full" if name == "nano" else "quick"
    for change in changes:
        if change.startswith("eval="):
            wanted = change.removeprefix("eval=")
    if wanted not in PLANS:
        raise InfiniteVLError(f"eval={wanted}: it is one of {', '.join(PLANS)}")
    job = train.parse(name, [change for change in changes if not change.startswith("eval=")])
    plan = PLANS[wanted]
    return job, plan and replace(plan, size=job.recipe.size)


def evaluate(job: Job, plan: Plan) -> Evaluated:
    """The last model by the plan, the teacher and the student before it in what they share with it."""
    recipe, out, workers = job.recipe, job.out, job.settings.workers
    last = recipe.stages[-1].name
    short = replace(
        plan, ages=(WINDOWS,), facts=FACTS, loads=(), ablations=False, long_tokens=0,
        window_frames=max(1, recipe.window // (recipe.size // TOKEN) ** 2),
    )  # fmt: skip
    compared = [TEACHER, *(stage.name for stage in recipe.stages[:-1] if stage.name == STUDENT)]
    found = {name: evaluated(out / name / MODEL, short, out / name / EVALUATION, workers) for name in compared}
    found[last] = evaluated(out / last / MODEL, plan, out / EVALUATION, workers)
    return Evaluated(found[TEACHER], found.get(STUDENT), found[last])


def evaluated(model: Path, plan: Plan, out: Path, workers: int) -> Results:
    """The results in `out`, where they are of this plan and these weights; else evaluates, in bfloat16 on a GPU.
    Processes that were launched together share the work, and must all call it."""
    now, (rank, _) = fingerprint(model), rank_and_count()
    if (out / RESULTS).is_file() and (out / FINGERPRINT).is_file() and (out / FINGERPRINT).read_text() == now:
        results = Results.from_json((out / RESULTS).read_text())
        if results.plan == plan:
            return results
    (out / FINGERPRINT).unlink(missing_ok=True)
    dtype = "bfloat16" if torch.cuda.is_available() else None
    loaded, name = console.load_model(str(model), None, dtype), model.parent.name
    terminal = Console(stderr=True, highlight=False, quiet=rank > 0)
    with terminal.status(f"evaluating {name}") as status:
        results = evaluate_model(
            loaded, plan, out, workers,
            lambda done, total, test: status.update(f"evaluating {name}: {test}, {done / total:.0%} of all frames"),
        )  # fmt: skip
    if rank == 0:
        keeping.replace(out / FINGERPRINT, lambda partial: partial.write_text(now))
    terminal.print(f"{name} evaluated in {report.clock(sum(results.seconds.values()))}")
    return results


def fingerprint(model: Path) -> str:
    """Of the weights in a folder."""
    found = []
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            found.append(file_digest(file, "sha256").hexdigest())
    return "\n".join(found)


def make_report(
    job: Job, model: InfiniteVLForConditionalGeneration, found: Evaluated | None, device: Device
) -> Report:
    """model: the last one, whose processor and device the others share."""
    recipe, out = job.recipe, job.out
    told = report.told_stages(stages(recipe), out, count_flops(recipe, out, model), device)
    figures = {"Losses": report.LOSSES} if report.draw_losses([stage.name for stage in told], out) else {}
    if found:
        paths = {title: f"{EVALUATION}/{name}.png" for name, title in FIGURES.items()}
        figures |= {title: path for title, path in paths.items() if (out / path).is_file()}
    return Report(
        recipe.name,
        device,
        told,
        aims(found.teacher, found.student, found.last) if found else [],
        figures,
        found.seconds if found else None,
    )


def count_flops(recipe: Recipe, out: Path, model: InfiniteVLForConditionalGeneration) -> dict[str, float | None]:
    """Per token, by stage; counted once, on the models that the stages left, and kept next to them."""
    teacher = cache(lambda: keeping.load_model(out / TEACHER / MODEL, model).cpu())
    found: dict[str, float | None] = {}
    for stage in stages(recipe):
        kept = out / stage.name / FLOPS
        if countable(stage) and not kept.is_file():
            student = keeping.load_model(out / stage.name / MODEL, model).cpu()
            counted = flops_per_token(recipe, stage, student, teacher() if stage.needs_teacher else None)
            keeping.replace(kept, lambda path, counted=counted: path.write_text(json.dumps(counted)))
        found[stage.name] = json.loads(kept.read_text()) if kept.is_file() else None
    return found


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """Those that are trained."""
    return recipe.student_stages if recipe.teacher else recipe.stages
