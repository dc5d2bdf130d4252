"""Files of conversations as endless, resumable streams of candidates for Samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinitevl.data.hub import TABLES, Hub, tables
from infinitevl.data.rows import to_sample
from infinitevl.data.sample import BadSample, Sample
from infinitevl.data.sources import START, JsonArray, JsonLines, Loaded, Order, Row, Source, one_line
from infinitevl.data.tars import Tars
from infinitevl.errors import InfiniteVLError

FORMATS = ("json", "jsonl", "webdataset", "hf")


def open_samples(
    path: str | Path,
    format: str | None = None,
    *,
    root: str | Path | None = None,
    fps: float = 2.0,
    shuffle: bool = False,
    seed: int = 0,
    split: str = "train",
    subset: str | None = None,
) -> "Reader":
    """The rows of a file, a folder, a pattern of tars or a dataset of the hub; InfiniteVLError if there is none.

    `format` is recognised where None: "json" (an array), "jsonl" (a row per line), "webdataset" (tars, as a.tar,
    *.tar, a-{000..127}.tar or their folder) or "hf" (parquet or arrow files or their folder; with the format given
    also a dataset's name, of which `split` and `subset` are read). Rows: see `rows`; LLaMA-Factory, ShareGPT,
    LLaVA and OpenAI all are.

    Relative paths of media are of `root`, by default the data's own folder. `fps` is for `Sample.fps`.

    `shuffle` orders every epoch anew by `seed` >= 0: the rows of JSON, the tars and what is in each, the files of hf.
    """
    if root is not None and not Path(root).is_dir():
        raise InfiniteVLError(f"{root}: no such folder")
    source = _source(str(path), format or _recognised(str(path)), split, subset)
    return Reader(source, Path(root or _folder(source)), fps, seed if shuffle else None)


def _source(path: str, form: str, split: str, subset: str | None) -> Source:
    if form not in FORMATS:
        raise InfiniteVLError(f"{form}: not a format of samples: {', '.join(FORMATS)}")
    if form == "hf":
        return Hub(path, split, subset)
    if form == "webdataset":
        return Tars(path)
    if not Path(path).is_file():
        raise InfiniteVLError(f"{path}: no such file")
    return JsonArray(Path(path)) if form == "json" else JsonLines(Path(path))


def _folder(source: Source) -> Path:
    if isinstance(source, Tars):
        return source.folder
    path = Path(source.name)
    return path if path.is_dir() else path.parent if path.exists() else Path()


def _recognised(name: str) -> str:
    """The format of a file or a folder by its name and, where that is not enough, by how it begins."""
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return "webdataset"
    if not path.exists():
        raise InfiniteVLError(f"{name}: no such file or folder (a dataset of the hub needs format 'hf')")
    if suffix in TABLES or (path.is_dir() and tables(path)):
        return "hf"
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if suffix == ".json":
        return "json" if _first_byte(path) == b"[" else "jsonl"
    if path.is_dir():
        raise InfiniteVLError(f"{name}: a folder without .tar, .parquet or .arrow files")
    raise InfiniteVLError(f"{name}: not a .json, .jsonl, .tar, .parquet or .arrow file: say its format")


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


@dataclass(frozen=True)
class Candidate:
    """A row that nobody has looked into yet, to be handed to whoever makes a sample of it, in any process.

    name: of its source and its place there; epoch: in which it was read; fault: why it could not be, else empty.
    """

    name: str
    epoch: int
    root: Path
    fps: float
    loaded: Loaded
    fault: str = ""

    def sample(self) -> Sample:
        """BadSample where it has a fault that can be told without decoding."""
        if self.fault:
            raise BadSample(f"{self.name}: {self.fault}")
        return to_sample(self.loaded.row, self.name, self.root, self.fps, self.loaded.files)


class Reader(Iterator[Candidate]):
    """The rows of a source, one epoch after another: StopIteration ends an epoch, `next` begins the next.

    A source without rows is an InfiniteVLError.

    Of `world_size` ranks each gets its own part of every epoch, and together they get all: whole shards where
    these can be dealt out evenly, else every `world_size`th row; the parts go round from epoch to epoch.
    """

    def __init__(self, source: Source, root: Path, fps: float, seed: int | None) -> None:
        self.source, self.root, self.fps, self.seed = source, root, fps, seed
        self.rank, self.world_size = 0, 1
        self._go(0)
        self._idle = 0  # epochs in a row without a row for this rank

    @property
    def name(self) -> str:
        """What the names of its candidates begin with."""
        return self.source.name

    def shard(self, rank: int, world_size: int) -> "Reader":
        """Itself, now reading its rank's part only, from the start of the epoch."""
        if not 0 <= rank < world_size:
            raise InfiniteVLError(f"rank {rank} of {world_size}: ranks are 0 to world_size - 1")
        self.rank, self.world_size = rank, world_size
        self._go(self.epoch)
        return self

    def __next__(self) -> Candidate:
        if self._rows is None:
            self._rows = self._begin()
        for row in self._rows:
            self._place, self._seen = row.after, self._seen + 1
            if self._whole() or self._is_mine(self._seen - 1):
                self._mine += 1
                return self._candidate(row)
        self._end()
        raise StopIteration

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in plain numbers: what follows depends on nothing else."""
        progress = {"epoch": self.epoch, "place": list(self._place), "seen": self._seen, "mine": self._mine}
        return {**self._identity(), **progress, "idle": self._idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly where the state was saved. InfiniteVLError if data, seed or ranks are not as they were."""
        for key, value in self._identity().items():
            if state[key] != value:
                raise InfiniteVLError(f"{self.name}: cannot resume, its {key} was {state[key]} and is now {value}")
        self._go(state["epoch"])
        self._place, self._seen, self._mine = tuple(state["place"]), state["seen"], state["mine"]
        self._idle = state["idle"]

    def _identity(self) -> dict[str, Any]:
        return {"mark": self.source.mark, "seed": self.seed, "rank": self.rank, "world_size": self.world_size}

    def _go(self, epoch: int) -> None:
        self.epoch, self._place, self._seen, self._mine = epoch, START, 0, 0
        self._rows: Iterator[Row] | None = None

    def _begin(self) -> Iterator[Row]:
        order = Order(self.seed, self.epoch)
        shards = order.of(self.source.shards)
        if self._whole():
            shards = [shard for shard in shards if self._is_mine(shard)]
        return self.source.rows(shards, order, self._place)

    def _whole(self) -> bool:
        """Whether the ranks get whole shards."""
        return self.source.shards % self.world_size == 0

    def _is_mine(self, number: int) -> bool:
        return (number + self.epoch) % self.world_size == self.rank

    def _candidate(self, row: Row) -> Candidate:
        loaded, fault = Loaded(None), ""
        try:
            loaded = row.load()
        except (BadSample, OSError) as error:
            fault = one_line(error)
        return Candidate(f"{self.name}:{row.where}", self.epoch, self.root, self.fps, loaded, fault)

    def _end(self) -> None:
        """Begins the next epoch. InfiniteVLError after as many empty ones as show a rank every row."""
        self._idle = 0 if self._mine else self._idle + 1
        if self._idle >= self.world_size:
            raise InfiniteVLError(f"{self.name}: no samples in it")
        self._go(self.epoch + 1)
