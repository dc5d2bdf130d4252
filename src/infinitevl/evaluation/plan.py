"""How much is evaluated: a plan, and the runs that it is made of."""

from dataclasses import dataclass, replace

from infinitevl.data.streamworld.world import TOKEN
from infinitevl.evaluation.feeding import Cast
from infinitevl.evaluation.scores import Cell
from infinitevl.evaluation.shows import Clip, Endless, Facts, Show
from infinitevl.evaluation.watching import Variant

CLIPS = {"read": 8, "see": 8, "move": 12}  # frames; leaving shows in no fewer than 9
EPISODES, EPISODE_FRAMES, EPISODE_QUESTIONS = ("recall", "order"), 64, 4
PLAIN, NARROW = Variant(), Variant("window / 4")
RESET_WINDOWS, HALF_LIFE_WINDOWS = 64, 16  # of the memory, in long streams
LONG_ROWS = 16  # long streams at a time, which as many processes can share
MOST_GROWN = 16384  # tokens of a stream that a model whose state grows is shown
GROWN_AT_ONCE = 2**19  # tokens that all streams of a batch of such a model hold


@dataclass(frozen=True)
class Plan:
    """Sizes of an evaluation.

    count: questions per accuracy; rows: most streams of a batch (of long streams LONG_ROWS), whose states, with
    ablations, are up to ten times as many; size: pixels a side of a frame; ages: of facts, in attention windows;
    facts: how many while the age varies; loads: how many while the age is `load_age`; window_frames: frames that
    count as an attention window (None: as many as fit; needed for a full-attention model); ablations: whether memory
    and window are tampered with; long_tokens: length of the long streams (0: none), long_streams: how many,
    long_ages: of their facts, asking: frames before a checkpoint in which questions are asked; tokens_at_once: most
    that the streams of a batch hold (None: any number).
    """

    count: int = 2000
    rows: int = 512
    size: int = 112
    ages: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16)
    facts: int = 8
    loads: tuple[int, ...] = (1, 2, 4, 8, 16)
    load_age: float = 8
    window_frames: int | None = None
    ablations: bool = True
    long_tokens: int = 500_000
    long_streams: int = 64
    long_ages: tuple[float, ...] = (1, 4, 16)
    asking: int = 768
    tokens_at_once: int | None = None

    @property
    def frame_tokens(self) -> int:
        return (self.size // TOKEN) ** 2

    def rows_of(self, show: Show) -> int:
        """Most streams of a batch, and most forks that wait with a question."""
        most = self.tokens_at_once and self.tokens_at_once // (show.length * self.frame_tokens)
        return self.rows if most is None else min(self.rows, max(most, 1))


QUICK = Plan(
    count=48, rows=64, ages=(0.5, 1, 2, 4), facts=4, loads=(1, 2, 4, 8), load_age=2,
    long_tokens=4096, long_streams=8, long_ages=(1, 4), asking=32,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A cast, and how it is watched. narrow: also by the model with a quarter of its attention window."""

    cast: Cast
    variants: tuple[Variant, ...] = (PLAIN,)
    narrow: bool = False
    marks: tuple[int, ...] = ()

    @property
    def frames(self) -> int:
        """Of all streams."""
        return len(self.cast.seeds) * self.cast.show.length

    @property
    def work(self) -> int:
        """Frames times models that watch them."""
        return self.frames * (len(self.variants) + self.narrow)


def bounded(plan: Plan) -> Plan:
    """What there is memory for where the model's state grows."""
    at_once = min(plan.tokens_at_once or GROWN_AT_ONCE, GROWN_AT_ONCE)
    return replace(plan, long_tokens=min(plan.long_tokens, MOST_GROWN), tokens_at_once=at_once)


def runs(plan: Plan, window: int, grows: bool) -> list[Run]:
    """Everything that is streamed. window: in frames; grows: the model has no memory of constant size."""
    tamper = plan.ablations and not grows
    return [*_clips(plan), *_ages(plan, window, tamper), *_loads(plan, window), *_long(plan, window, tamper)]


def _clips(plan: Plan) -> list[Run]:
    short = [Clip(Cell("perception", group), frames, size=plan.size) for group, frames in CLIPS.items()]
    found = [run for clip in short for run in _batches(plan, clip, plan.count)]
    for group in EPISODES:
        clip = Clip(Cell("episode", group), EPISODE_FRAMES, EPISODE_QUESTIONS, plan.size)
        found += _batches(plan, clip, -(-plan.count // EPISODE_QUESTIONS))
    return found


def _ages(plan: Plan, window: int, tamper: bool) -> list[Run]:
    show = Facts(plan.facts, plan.ages, window, plan.size)
    variants = (PLAIN, Variant("amnesic", every=window), Variant("reset", edge=window)) if tamper else (PLAIN,)
    return _batches(plan, show, -(-plan.count // plan.facts), variants, narrow=tamper)


def _loads(plan: Plan, window: int) -> list[Run]:
    """The load that the ages are measured with is not measured again."""
    done = plan.facts if plan.load_age in plan.ages else None
    shows = [Facts(facts, (plan.load_age,), window, plan.size) for facts in plan.loads if facts != done]
    return [run for show in shows for run in _batches(plan, show, -(-plan.count // show.facts))]


def _long(plan: Plan, window: int, tamper: bool) -> list[Run]:
    """Accuracy at the end of the long streams and at 1/4, 1/16, ... of it, as long as what is asked before one comes
    after the one before, and there is something to ask; norms at powers of 2 and at the end."""
    if plan.long_tokens < plan.frame_tokens:
        return []
    stops, youngest = [plan.long_tokens // plan.frame_tokens], window * min(plan.long_ages)
    while youngest < (frames := stops[-1] // 4) <= stops[-1] - plan.asking:
        stops.append(frames)
    show = Endless(tuple(sorted(stops)), plan.long_ages, window, plan.asking, size=plan.size)
    reset = Variant(f"reset every {RESET_WINDOWS} windows", every=RESET_WINDOWS * window)
    decay = Variant(f"half-life {HALF_LIFE_WINDOWS} windows", every=window, factor=0.5 ** (1 / HALF_LIFE_WINDOWS))
    marks = (*(2**i for i in range(show.length.bit_length())), show.length) if tamper else ()
    variants, rows = (PLAIN, reset, decay) if tamper else (PLAIN,), min(plan.rows_of(show), LONG_ROWS)
    return [Run(cast, variants, marks=marks) for cast in _casts(show, plan.long_streams, rows)]


def _batches(
    plan: Plan, show: Show, streams: int, variants: tuple[Variant, ...] = (PLAIN,), narrow: bool = False
) -> list[Run]:
    return [Run(cast, variants, narrow) for cast in _casts(show, streams, plan.rows_of(show))]


def _casts(show: Show, streams: int, rows: int) -> list[Cast]:
    return [Cast(show, range(i, min(i + rows, streams))) for i in range(0, streams, rows)]
