"""Hugging Face datasets, streamed: by name from the hub, or a folder of parquet or arrow files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infinitevl.data.sources import Loaded, Order, Place, Row, failing, one_line
from infinitevl.errors import InfiniteVLError

TABLES = {".parquet": "parquet", ".arrow": "arrow"}


class Hub:
    """A dataset as shards, one for each of its files, which are shuffled; rows in a file stay in their order.

    Pictures stay bytes until the sample is made, so that a damaged one is one bad row and not the end.
    """

    def __init__(self, name: str, split: str = "train", subset: str | None = None) -> None:
        self.name = name
        self._data = _opened(name, split, subset)
        if self._data.features:
            self._data = self._data.decode(False)
        self.shards = self.mark = self._data.num_shards

    def rows(self, shards: Sequence[int], order: Order, place: Place) -> Iterator[Row]:
        for at in range(place[0], len(shards)):
            number = place[1] if at == place[0] else 0
            rows = self._shard(shards[at], number)
            while (row := _next(rows)) is not None:
                number += 1
                where = f"{shards[at]}/{number}"
                if isinstance(row, Exception):
                    yield Row(where, failing(f"broken shard: {one_line(row)}"), (at + 1, 0))
                    break
                yield Row(where, lambda row=row: Loaded(row), (at, number))

    def _shard(self, shard: int, start: int) -> Iterator[Any]:
        rows = self._data.shard(num_shards=self.shards, index=shard)
        return iter(rows.skip(start) if start else rows)


def _next(rows: Iterator[Any]) -> Any:
    """The next row, None at the end, or the error that keeps a damaged shard from going on."""
    try:
        return next(rows, None)
    except Exception as error:  # whatever the file format's library raises
        return error


def _opened(name: str, split: str, subset: str | None) -> Any:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InfiniteVLError(f"{name}: Hugging Face datasets need: pip install infinitevl[train]") from None
    try:
        if not Path(name).exists():
            return load_dataset(name, subset, split=split, streaming=True)
        files = tables(Path(name))
        return load_dataset(TABLES[files[0].suffix], data_files=[*map(str, files)], split="train", streaming=True)
    except Exception as error:  # of the network, the hub, or whatever reads the format
        raise InfiniteVLError(f"{name}: cannot be opened as a Hugging Face dataset ({one_line(error)})") from None


def tables(path: Path) -> list[Path]:
    """The parquet files of a folder, else its arrow files, in order; a file alone is itself."""
    if path.is_file():
        return [path]
    return sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.arrow"))
