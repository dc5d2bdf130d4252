"""The whole evaluation of a model."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from infinitevl.data.streamworld import text_questions
from infinitevl.data.streamworld.episodes import FPS
from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation.feeding import feed
from infinitevl.evaluation.figures import draw
from infinitevl.evaluation.lockstep import Lockstep
from infinitevl.evaluation.plan import NARROW, Plan, Run, bounded, runs
from infinitevl.evaluation.results import Results, markdown, write
from infinitevl.evaluation.scores import Ask, Cell, Tally
from infinitevl.evaluation.sharing import gathered, rank_and_count, share
from infinitevl.evaluation.shows import SPLIT
from infinitevl.evaluation.watching import Norm, Pool, Watch, mean_norms, reach
from infinitevl.model.fp8 import precision
from infinitevl.model.layers import Attention
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration

Tell = Callable[[int, int, str], None]  # frames done, of so many, and the test


@dataclass
class Found:
    """By one process. norms: each with the number of streams that it is the mean of; seconds: by test."""

    tally: Tally = field(default_factory=Tally)
    norms: list[tuple[Norm, int]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def evaluate_model(
    model: InfiniteVLForConditionalGeneration,
    plan: Plan | None = None,
    out: Path | None = None,
    workers: int = 0,
    tell: Tell = lambda done, total, test: None,
) -> Results:
    """Stream the test split of StreamWorld and ask.

    Processes that were launched together each do their share, if all call it with the same model on a device of
    their own; each gets all results, whose seconds are means. out: a folder that gets results.json, results.md and,
    where matplotlib is installed, figures. workers: processes of each that make the frames (0: itself); tell: of
    its share.
    """
    plan, model = plan or Plan(), model.eval()
    results = Results(_described(model), plan, window_frames(model, plan))
    plan = bounded(plan) if _grows(model) else plan
    rank, count = rank_and_count()
    todo = share(runs(plan, results.window_frames, _grows(model)), rank, count)
    mine = Found()
    if rank == 0:
        with _timed(mine, "text"):
            _ask_texts(model, plan, mine.tally)
    _watch(model, plan, todo, mine, workers, tell)
    _join(results, gathered(mine))
    if out and rank == 0:
        save(results, out)
    return results


def _watch(
    model: InfiniteVLForConditionalGeneration, plan: Plan, todo: list[Run], found: Found, workers: int, tell: Tell
) -> None:
    pieces = feed([run.cast for run in todo], workers, model.device)
    narrow = narrowed(model) if any(run.narrow for run in todo) else None
    done, total = 0, sum(run.frames for run in todo)
    for run in todo:
        name = run.cast.show.name
        with _timed(found, name):
            watches = _watches(run, model, narrow, found.tally, plan.rows_of(run.cast.show))
            for frames, notes in islice(pieces, len(run.cast.starts())):
                for watch in watches:
                    watch.see(frames, notes)
                tell(done := done + frames.shape[0] * frames.shape[1], total, name)
            for watch in watches:
                watch.pool.flush()
        found.norms += [(norm, len(run.cast.seeds)) for norm in watches[0].norms]


def _join(results: Results, parts: list[Found]) -> None:
    """What all processes found."""
    tally = Tally()
    for part in parts:
        tally.add(part.tally)
        for name, seconds in part.seconds.items():
            results.seconds[name] = results.seconds.get(name, 0.0) + seconds / len(parts)
    results.norms = mean_norms([norm for part in parts for norm in part.norms])
    results.cells, results.kinds, results.held_out = tally.cells(), tally.kinds(), tally.held_out()


def save(results: Results, out: Path) -> None:
    """results.json, results.md and figures in a folder, each file whole or not at all."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(out / "results.json", lambda path: path.write_text(results.to_json()))
        write(out / "results.md", lambda path: path.write_text(markdown(results)))
        draw(results, out)
    except OSError as error:
        raise InfiniteVLError(f"cannot write {out}: {error.strerror}") from None


def window_frames(model: InfiniteVLForConditionalGeneration, plan: Plan) -> int:
    """Frames that count as an attention window: the plan's, or as many as fit into the model's."""
    text = model.config.text_config
    if plan.window_frames:
        return plan.window_frames
    if "sliding_attention" not in text.layer_types:
        raise InfiniteVLError("a model without attention windows: say how many frames count as one (--window-frames)")
    return max(1, text.sliding_window // plan.frame_tokens)


def narrowed(model: InfiniteVLForConditionalGeneration) -> InfiniteVLForConditionalGeneration:
    """A copy whose attention layers see a quarter of the window."""
    copied = copy.deepcopy(model, {id(model.processor): model.processor})
    window = max(1, copied.config.text_config.sliding_window // 4)
    copied.config.text_config.sliding_window = window
    for module in copied.modules():
        if isinstance(module, Attention) and module.window is not None:
            module.window = window
    return copied


def _watches(
    run: Run,
    model: InfiniteVLForConditionalGeneration,
    narrow: InfiniteVLForConditionalGeneration | None,
    tally: Tally,
    rows: int,
) -> list[Watch]:
    """One of the model; where the run wants it, another of the narrow model."""
    streams = len(run.cast.seeds)
    watches = [Watch(model, streams, run.variants, Pool(tally, rows), run.marks)]
    if run.narrow and narrow:
        watches.append(Watch(narrow, streams, (NARROW,), Pool(tally, rows)))
    return watches


def _ask_texts(model: InfiniteVLForConditionalGeneration, plan: Plan, tally: Tally) -> None:
    """Questions without a frame."""
    pool = Pool(tally, plan.rows)
    asks = [Ask(Cell("text", "text"), question) for question in text_questions(0, SPLIT, plan.count)]
    for start in range(0, len(asks), plan.rows):
        batch = asks[start : start + plan.rows]
        pool.add(Lockstep(model, len(batch), FPS), range(len(batch)), batch)
    pool.flush()


def _grows(model: InfiniteVLForConditionalGeneration) -> bool:
    return "full_attention" in model.config.text_config.layer_types


def _described(model: InfiniteVLForConditionalGeneration) -> dict[str, Any]:
    text = model.config.text_config
    return {
        "name": Path(model.config.name_or_path or "").name or "model",
        "parameters": model.num_parameters(),
        "layers": dict(Counter(text.layer_types)),
        "sliding_window": text.sliding_window,
        "reach": reach(text.layer_types),
        "dtype": precision(model),
        "device": model.device.type,
    }


@contextmanager
def _timed(found: Found, name: str) -> Iterator[None]:
    began = perf_counter()
    yield
    found.seconds[name] = found.seconds.get(name, 0.0) + perf_counter() - began
