"""The rows of data files, in an order that can be taken up again at any place."""

import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from infinitevl.data.sample import BadSample
from infinitevl.errors import InfiniteVLError

Place = tuple[int, int]  # where an epoch is taken up again; what the two mean is the source's own business
START: Place = (0, 0)


class Loaded(NamedTuple):
    """A row as it was written, and the files that lie beside it."""

    row: Any
    files: Mapping[str, bytes] = {}


class Row(NamedTuple):
    """where: the row's name in its source. load: reads it, raising BadSample. after: the place of the next row."""

    where: str
    load: Callable[[], Loaded]
    after: Place


class Order(NamedTuple):
    """The order of one epoch: as written where seed is None, else shuffled; the same on every machine."""

    seed: int | None
    epoch: int

    def of(self, count: int, salt: int = 0) -> Sequence[int]:
        """A permutation of range(count). (Raw bits, because NumPy may change its own permutations.)"""
        if self.seed is None:
            return range(count)
        keys = np.random.PCG64([self.seed, self.epoch, salt]).random_raw(count)
        return np.argsort(keys, kind="stable").tolist()


class Source(Protocol):
    """name: what the user called it. shards: parts that can be read apart. mark: changes if the data change."""

    name: str
    shards: int
    mark: int

    def rows(self, shards: Sequence[int], order: Order, place: Place) -> Iterator[Row]:
        """The rows of these shards in this order, from a place on, which START or a Row of the same epoch gave."""
        ...


def failing(reason: str) -> Callable[[], NoReturn]:
    """The `load` of a row that is known to be bad."""

    def load() -> NoReturn:
        raise BadSample(reason)

    return load


def one_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


class JsonArray:
    """A file that is one JSON array, read at once."""

    shards = 1

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            rows = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise InfiniteVLError(f"{path}: not a JSON file that can be read ({one_line(error)})") from None
        if not isinstance(rows, list):
            raise InfiniteVLError(f"{path}: a JSON {type(rows).__name__}, not an array of samples")
        self._rows, self.mark = rows, len(rows)

    def rows(self, shards: Sequence[int], order: Order, place: Place) -> Iterator[Row]:
        numbers = order.of(len(self._rows))
        for at in range(place[0], len(numbers)):
            row = Loaded(self._rows[numbers[at]])
            yield Row(str(numbers[at] + 1), lambda row=row: row, (at + 1, 0))


class JsonLines:
    """A file with a JSON object on every line. Read as it goes; shuffled, its lines are first found, once."""

    shards = 1

    def __init__(self, path: Path) -> None:
        self.name, self.mark, self._path = str(path), path.stat().st_size, path
        self._index: np.ndarray | None = None

    def rows(self, shards: Sequence[int], order: Order, place: Place) -> Iterator[Row]:
        return self._in_order(place) if order.seed is None else self._shuffled(order, place)

    def _in_order(self, place: Place) -> Iterator[Row]:
        for number, start, line in self._lines(*place):
            yield Row(str(number + 1), lambda line=line: _parsed(line), (number + 1, start + len(line)))

    def _shuffled(self, order: Order, place: Place) -> Iterator[Row]:
        if self._index is None:
            found = array("q", (value for number, start, _ in self._lines(0, 0) for value in (number, start)))
            self._index = np.frombuffer(found, dtype=np.int64).reshape(-1, 2)
        places = order.of(len(self._index))
        with self._path.open("rb") as file:
            for at in range(place[0], len(places)):
                number, start = self._index[places[at]].tolist()
                yield Row(str(number + 1), lambda start=start: _parsed(_line_at(file, start)), (at + 1, 0))

    def _lines(self, number: int, start: int) -> Iterator[tuple[int, int, bytes]]:
        """(number, start in bytes, line) of the lines with something on them, from one of them on."""
        with self._path.open("rb") as file:
            file.seek(start)
            for line in file:
                if line.strip():
                    yield number, start, line
                number, start = number + 1, start + len(line)


def _line_at(file: Any, start: int) -> bytes:
    file.seek(start)
    return file.readline()


def _parsed(line: bytes) -> Loaded:
    try:
        return Loaded(json.loads(line.rstrip()))
    except (ValueError, RecursionError) as error:
        raise BadSample(f"broken JSON: {one_line(error)}") from None
