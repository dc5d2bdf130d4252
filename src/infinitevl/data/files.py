"""Files of conversations as packed batches: the same for any number of workers, and after any restart."""

import pickle
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from infinitevl.data.encode import Encoded, Encoder
from infinitevl.data.forking import started
from infinitevl.data.mixture import Mixture
from infinitevl.data.packing import Batch, fill_row, pack
from infinitevl.data.readers import Candidate, Reader, open_samples
from infinitevl.data.sample import BadSample
from infinitevl.data.skipped import Skipped
from infinitevl.errors import InfiniteVLError

AHEAD = 4  # samples that wait for each worker
PATIENCE = 8  # passes of a rank; each shows it a random share of the rows, so that it misses one in e^-8 of all cases
State = dict[str, Any]


@dataclass(frozen=True)
class FilePart:
    """A source in a mixture: `open_samples` says what it may be. weight: its share of the samples drawn."""

    weight: float
    path: str
    fps: float = 2.0
    format: str | None = None
    root: str | None = None
    split: str = "train"
    subset: str | None = None

    def open(self, **order: Any) -> Reader:
        """order: shuffle and seed, as of `open_samples`."""
        return open_samples(**{name: value for name, value in asdict(self).items() if name != "weight"}, **order)


@dataclass(frozen=True)
class FileBatches:
    """`steps` batches of `rows` rows of `tokens`, of samples drawn from the parts, each epoch of a part shuffled anew.

    encoder: refuses samples longer than a row. skipped: where every sample that cannot be used is told.
    """

    parts: tuple[FilePart, ...]
    encoder: Encoder
    rows: int
    tokens: int
    steps: int
    seed: int
    skipped: Skipped
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.encoder.max_tokens > self.tokens:
            raise InfiniteVLError(f"samples of up to {self.encoder.max_tokens} tokens for rows of {self.tokens}")

    def shard(self, rank: int, world_size: int) -> "FileBatches":
        """The part of one of the ranks: rows / world_size rows of every batch, of samples that no other rank draws."""
        if self.rows % world_size:
            raise InfiniteVLError(f"{self.rows} rows cannot be shared evenly by {world_size} ranks")
        return replace(self, rows=self.rows // world_size, rank=rank, world_size=world_size)

    def batches(self, start: int, state: State | None, workers: int) -> Iterator[tuple[Batch, State]]:
        """The batches from step `start` on, each with the state that continues after it; None begins.

        workers: processes that decode and encode, 0 for this one. InfiniteVLError for a part without a good sample.
        """
        feed, waiting = _Feed(self, state, workers), list[Encoded]()
        for _ in range(start, self.steps):
            rows = [fill_row(feed, self.tokens, waiting) for _ in range(self.rows)]
            yield pack(rows, self.tokens), feed.state(waiting)

    def mixture(self) -> Mixture:
        sources = [(part.open(shuffle=True, seed=self.seed), part.weight) for part in self.parts]
        return Mixture(sources, self.seed, rank=self.rank, world_size=self.world_size)


@dataclass
class _Placed(Encoded):
    """place: the state of the mixture that draws it again."""

    place: State


@dataclass
class _Drawn:
    """A candidate on its way through the workers.

    place, after: the states of the mixture that draw it again and draw the next; no `after` where it is drawn again.
    """

    source: int
    name: str
    epoch: int
    place: State
    after: State | None


@dataclass
class _Record:
    """What came of a source. good: its last epoch with a good sample; bad: how many were bad since, and the first."""

    good: int = -1
    bad: int = 0
    first: str = ""


class _Feed(Iterator[Encoded]):
    """The good samples, in the order drawn, wherever they are encoded.

    The draws run ahead of what is taken. So all that a state tells is kept for the last sample taken: nothing that
    waits in the workers is lost, or told twice, in a restart.
    """

    def __init__(self, data: FileBatches, state: State | None, workers: int) -> None:
        self._skipped, mixture = data.skipped, data.mixture()
        self._epochs = 1 if data.world_size == 1 else PATIENCE * data.world_size
        self._paths = [part.path for part in data.parts]
        self._after = mixture.state_dict()
        self._records = [_Record() for _ in data.parts]
        again: list[State] = []
        if state is not None:
            self._after, again = state["mixture"], state["waiting"]
            self._records = [_Record(**record) for record in state["records"]]
            self._skipped.counts = Counter(state["skipped"])
        self._drawn: deque[_Drawn] = deque()
        loader: Any = DataLoader(
            _Encoding(data.encoder),
            batch_size=None,
            sampler=_candidates(mixture, again, self._after, self._drawn),
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            generator=torch.Generator(),  # else it would draw from that of the training
        )
        self._results = started(loader)

    def __next__(self) -> Encoded:
        while True:
            result, drawn = pickle.loads(next(self._results)), self._drawn.popleft()
            self._after = drawn.after or self._after
            if self._is_good(drawn, result):
                return _Placed(**vars(result), place=drawn.place)

    def state(self, waiting: list[Encoded]) -> State:
        return {
            "mixture": self._after,
            "waiting": [sample.place for sample in waiting if isinstance(sample, _Placed)],
            "records": [asdict(record) for record in self._records],
            "skipped": dict(self._skipped.counts),
        }

    def _is_good(self, drawn: _Drawn, result: Encoded | str) -> bool:
        """Keeps the record of its source. InfiniteVLError where all was bad for so many epochs that it all must be."""
        record = self._records[drawn.source]
        if drawn.epoch - record.good > self._epochs:
            path = self._paths[drawn.source]
            raise InfiniteVLError(f"{path}: all {record.bad} samples are bad, the first: {record.first}")
        if isinstance(result, Encoded):
            if drawn.after:
                self._records[drawn.source] = _Record(drawn.epoch)
            return True
        self._skipped.add(drawn.name, result)
        record.bad, record.first = record.bad + 1, record.first or result
        return False


def _candidates(mixture: Mixture, again: list[State], after: State, drawn: deque[_Drawn]) -> Iterator[Candidate]:
    """Those that were waiting for a row, then new ones; what is known of each goes to `drawn`.

    Not a method: workers stop at once only where their iterator is in no cycle with the feed.
    """
    for place in again:
        mixture.load_state_dict(place)
        source, candidate = next(mixture)
        drawn.append(_Drawn(source, candidate.name, candidate.epoch, place, None))
        yield candidate
    mixture.load_state_dict(after)
    while True:
        place = after
        source, candidate = next(mixture)
        after = mixture.state_dict()
        drawn.append(_Drawn(source, candidate.name, candidate.epoch, place, after))
        yield candidate


class _Encoding(Dataset):
    """What the workers do."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __getitem__(self, candidate: Candidate) -> bytes:
        """Encoded or why not, pickled: every tensor that is sent as such keeps a file open."""
        return pickle.dumps(self._tried(candidate))

    def _tried(self, candidate: Candidate) -> Encoded | str:
        try:
            return self.encoder(candidate.sample())
        except BadSample as error:
            return str(error)
        except Exception as error:  # no row may stop the training; should never happen
            return f"{candidate.name}: unexpected {type(error).__name__}: {error}"
