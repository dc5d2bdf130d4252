"""Files of conversations as endless, resumable streams of Samples."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infinitevl.data.hub import TABLES, Hub, tables
from infinitevl.data.rows import to_sample
from infinitevl.data.sample import BadSample, Sample
from infinitevl.data.skipped import Skipped
from infinitevl.data.sources import START, JsonArray, JsonLines, Order, Row, Source
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
    skipped: Skipped | None = None,
    split: str = "train",
    subset: str | None = None,
) -> "Reader":
    """The samples of a file, a folder, a pattern of tars or a dataset of the hub; InfiniteVLError if there is none.

    `format` is recognised where None: "json" (an array), "jsonl" (a row per line), "webdataset" (tars, as a.tar,
    *.tar, a-{000..127}.tar or their folder) or "hf" (parquet or arrow files or their folder; with the format given
    also a dataset's name, of which `split` and `subset` are read). Rows: see `rows`; LLaMA-Factory, ShareGPT,
    LLaVA and OpenAI all are.

    Relative paths of media are of `root`, by default the data's own folder. `fps` is for `Sample.fps`.

    `shuffle` orders every epoch anew by `seed` >= 0: the rows of JSON, the tars and what is in each, the files of hf.

    `skipped` is where bad rows are reported, by default a log of the reader's own.
    """
    if root is not None and not Path(root).is_dir():
        raise InfiniteVLError(f"{root}: no such folder")
    source = _source(str(path), format or _recognised(str(path)), split, subset)
    skipped = Skipped() if skipped is None else skipped
    return Reader(source, Path(root or _folder(source)), fps, seed if shuffle else None, skipped)


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


class Reader(Iterator[Sample]):
    """The good samples of a source, one epoch after another: StopIteration ends an epoch, `next` begins the next.

    Bad rows are left out and reported to `skipped`, where later stages report samples they cannot use, by name.
    An epoch without a single usable sample is an InfiniteVLError.

    Of `world_size` ranks each gets its own part of every epoch, and together they get all: whole shards where
    these can be dealt out evenly, else every `world_size`th row; the parts go round from epoch to epoch.
    """

    def __init__(self, source: Source, root: Path, fps: float, seed: int | None, skipped: Skipped) -> None:
        self.source, self.root, self.fps, self.seed = source, root, fps, seed
        self.rank, self.world_size = 0, 1
        self.report_to(skipped)
        self._go(0)
        self._barren, self._barren_rows = 0, 0  # epochs in a row, and their rows, without a sample of use

    @property
    def name(self) -> str:
        """What the names of its samples begin with."""
        return self._tally.name

    def report_to(self, skipped: Skipped) -> None:
        self.skipped, self._tally = skipped, skipped.watch(self.source.name)

    def shard(self, rank: int, world_size: int) -> "Reader":
        """Itself, now reading its rank's part only, from the start of the epoch."""
        if not 0 <= rank < world_size:
            raise InfiniteVLError(f"rank {rank} of {world_size}: ranks are 0 to world_size - 1")
        self.rank, self.world_size = rank, world_size
        self._go(self.epoch)
        return self

    def __next__(self) -> Sample:
        if self._rows is None:
            self._rows = self._begin()
        for row in self._rows:
            self._place, self._seen = row.after, self._seen + 1
            if (self._whole() or self._is_mine(self._seen - 1)) and (sample := self._sample(row)):
                return sample
        self._end()
        raise StopIteration

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in plain numbers and text: what follows depends on nothing else."""
        progress = {"epoch": self.epoch, "place": list(self._place), "seen": self._seen, "mine": self._mine}
        barren = {"barren": self._barren, "barren_rows": self._barren_rows}
        return {**self._identity(), **progress, **barren, "bad": self._tally.bad, "first": self._tally.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly where the state was saved. InfiniteVLError if data, seed or ranks are not as they were."""
        for key, value in self._identity().items():
            if state[key] != value:
                raise InfiniteVLError(f"{self.name}: cannot resume, its {key} was {state[key]} and is now {value}")
        self._go(state["epoch"])
        self._place, self._seen, self._mine = tuple(state["place"]), state["seen"], state["mine"]
        self._barren, self._barren_rows = state["barren"], state["barren_rows"]
        self._tally.bad, self._tally.first = state["bad"], state["first"]

    def _identity(self) -> dict[str, Any]:
        return {"mark": self.source.mark, "seed": self.seed, "rank": self.rank, "world_size": self.world_size}

    def _go(self, epoch: int) -> None:
        self.epoch, self._place, self._seen, self._mine = epoch, START, 0, 0
        self._rows: Iterator[Row] | None = None

    def _begin(self) -> Iterator[Row]:
        order = Order(self.seed, self.epoch)
        shards = order.of(self.source.shards)
        if self._whole():
            shards = [shard for at, shard in enumerate(shards) if self._is_mine(at)]
        return self.source.rows(shards, order, self._place)

    def _whole(self) -> bool:
        """Whether the ranks get whole shards."""
        return self.source.shards % self.world_size == 0

    def _is_mine(self, number: int) -> bool:
        return (number + self.epoch) % self.world_size == self.rank

    def _sample(self, row: Row) -> Sample | None:
        """The sample of a row; None, and a line in the log, for a bad one."""
        self._mine += 1
        name = f"{self.name}:{row.where}"
        try:
            loaded = row.load()
            return to_sample(loaded.row, name, self.root, self.fps, loaded.files)
        except BadSample as error:
            self.skipped.add(name, str(error))
        except Exception as error:  # no row may stop the training; should never happen
            self.skipped.add(name, f"unexpected {type(error).__name__}: {error}")
        return None

    def _end(self) -> None:
        """Begins the next epoch. InfiniteVLError if all was bad for as many epochs as show a rank every row."""
        barren, mine, tally = self._tally.bad >= self._mine, self._mine, self._tally
        self._barren = self._barren + 1 if barren else 0
        self._barren_rows = self._barren_rows + mine if barren else 0
        if self._barren >= self.world_size:
            why = f"all {self._barren_rows} samples are bad, the first: {tally.first}"
            raise InfiniteVLError(f"{self.name}: {why if self._barren_rows else 'no samples in it'}")
        tally.bad, tally.first = 0, tally.first if barren else ""
        self._go(self.epoch + 1)
