"""Small data sets in every format, and a stand-in for the library `datasets` where it is not installed."""

import base64
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from infinitevl.data.readers import Candidate, Reader
from infinitevl.data.sample import BadSample, Sample

Make = Callable[[list[Any]], Path]


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(file, "png")
    return file.getvalue()


def data_url(shade: int = 0) -> str:
    return "data:image/png;base64," + base64.b64encode(png(shade)).decode()


def talk(number: int, mark: str = "", **more: Any) -> dict[str, Any]:
    """A row whose answer is its number."""
    asked = {"role": "user", "content": f"{mark}What?"}
    return {"messages": [asked, {"role": "assistant", "content": str(number)}], **more}


def good(candidates: Iterable[Candidate]) -> Iterator[Sample]:
    """The samples of those of which one can be made."""
    for candidate in candidates:
        with suppress(BadSample):
            yield candidate.sample()


def number(sample: Sample) -> int:
    return int(sample.messages[-1]["content"])


def numbers(candidates: Iterable[Candidate]) -> list[int]:
    return [number(sample) for sample in good(candidates)]


def take(reader: Reader, count: int) -> list[int]:
    """The numbers of the next samples, over the ends of epochs."""
    found: list[int] = []
    while len(found) < count:
        found += numbers(islice(reader, 1))
    return found


def write_lines(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON Lines; a text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def write_tar(path: Path, members: dict[str, Any]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_tars(folder: Path, rows: list[Any], shards: int = 4) -> Path:
    """Rows dealt into a-000.tar, a-001.tar, ...; the pattern of all."""
    each = -(-len(rows) // shards)
    for shard in range(shards):
        part = enumerate(rows[shard * each : (shard + 1) * each])
        write_tar(folder / f"a-{shard:03}.tar", {f"{number}.json": row for number, row in part})
    return folder / f"a-{{000..{shards - 1:03}}}.tar"


class FakeStream:
    """As much of datasets.IterableDataset as is used: shards of rows, here files of JSON Lines."""

    features = None

    def __init__(self, files: list[str], skipped: int = 0) -> None:
        self.files, self.skipped, self.num_shards = files, skipped, len(files)

    def shard(self, num_shards: int, index: int) -> "FakeStream":
        assert num_shards == self.num_shards
        return FakeStream([self.files[index]])

    def skip(self, count: int) -> "FakeStream":
        return FakeStream(self.files, count)

    def __iter__(self) -> Iterator[Any]:
        rows = (json.loads(line) for file in self.files for line in Path(file).read_text().splitlines())
        return (row for number, row in enumerate(rows) if number >= self.skipped)


def fake_datasets() -> ModuleType:
    module = ModuleType("datasets")
    module.load_dataset = lambda kind, data_files, **_: FakeStream(data_files)  # type: ignore[attr-defined]
    return module


def write_hub(folder: Path, rows: list[Any], shards: int = 4) -> Path:
    """Rows as a folder of parquet files, or of what the stand-in takes for it."""
    each = -(-len(rows) // shards)
    for shard in range(shards):
        part = rows[shard * each : (shard + 1) * each]
        path = folder / f"{shard:02}.parquet"
        if isinstance(sys.modules["datasets"], ModuleType) and hasattr(sys.modules["datasets"], "Dataset"):
            sys.modules["datasets"].Dataset.from_list(part).to_parquet(path)
        else:
            write_lines(path, part)
    return folder
