"""WebDataset: tar files in which neighbours with the same name up to the first dot are one sample."""

import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from infinitevl.data.rows import CLIPS, MARKS, PICTURES
from infinitevl.data.sample import BadSample
from infinitevl.data.sources import Loaded, Order, Place, Row, failing, one_line
from infinitevl.errors import InfiniteVLError
from infinitevl.video.pictures import natural

BRACES = re.compile(r"\{([^{}]*)\}")
TEXTS = frozenset({"json", "txt"})
BLOCK = 512  # bytes; tar headers and the two blocks of zeros at its end


class Group(NamedTuple):
    """The members of one sample: (start, size) in bytes by name."""

    key: str
    members: dict[str, tuple[int, int]]


class Tars:
    """Tar files as shards: a.tar, *.tar, a-{000..127}.tar, or a folder of them. Shuffled by shard and inside it.

    A sample is key.json with a conversation, or key.txt (or "caption" in key.json) with a description, and its
    pictures and videos key.jpg or key.0.jpg, key.1.jpg, in natural order.
    """

    def __init__(self, pattern: str) -> None:
        self.name, self._paths = pattern, _shards(pattern)
        self.shards = len(self._paths)
        self.folder = self._paths[0].parent
        sizes = ";".join(f"{path.name} {path.stat().st_size}" for path in self._paths)
        self.mark = zlib.crc32(sizes.encode())

    def rows(self, shards: Sequence[int], order: Order, place: Place) -> Iterator[Row]:
        for at in range(place[0], len(shards)):
            path, first = self._paths[shards[at]], place[1] if at == place[0] else 0
            groups, problem = _groups(path)
            inside = order.of(len(groups), salt=shards[at] + 1)
            for number in range(first, len(groups)):
                yield _row(path, groups[inside[number]], (at, number + 1))
            if problem:
                yield Row(path.name, failing(f"broken tar: {problem}"), (at + 1, 0))


def _row(path: Path, group: Group, after: Place) -> Row:
    return Row(f"{path.name}/{group.key}", lambda: _load(path, group), after)


def _load(path: Path, group: Group) -> Loaded:
    with path.open("rb") as file:
        read = {name: _read(file, *group.members[name]) for name in sorted(group.members, key=_natural)}
    if any(len(content) < group.members[name][1] for name, content in read.items()):
        raise BadSample("cut short by the end of its tar")
    texts = {_extension(name): read.pop(name) for name in list(read) if _extension(name) in TEXTS}
    return Loaded(_conversation(texts, read), read)


def _read(file: Any, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _natural(name: str) -> list[Any]:
    return natural(Path(name))


def _extension(name: str) -> str:
    """All that follows the first dot."""
    return PurePosixPath(name).name.partition(".")[2].lower()


def _conversation(texts: Mapping[str, bytes], files: Mapping[str, bytes]) -> Any:
    """key.json if it holds a conversation, else the description as the answer to a request for one."""
    try:
        row = json.loads(texts["json"]) if "json" in texts else {}
        caption = texts["txt"].decode() if "txt" in texts else None
    except (ValueError, RecursionError) as error:
        raise BadSample(f"broken JSON or text: {one_line(error)}") from None
    if not isinstance(row, dict) or "messages" in row or "conversations" in row:
        return row
    caption = row.get("caption") if caption is None else caption
    if not isinstance(caption, str):
        raise BadSample("no conversation")
    kinds = ["video" if PurePosixPath(name).suffix.lower() in CLIPS else "image" for name in files]
    request = "".join(MARKS[kind] for kind in kinds) + f"Describe the {kinds[0] if kinds else 'topic'}."
    return {"messages": [{"role": "user", "content": request}, {"role": "assistant", "content": caption.strip()}]}


def _groups(path: Path) -> tuple[list[Group], str]:
    """The samples of a tar, by its headers alone, and what is wrong with it where it cannot be read to its end."""
    groups: list[Group] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                _collect(member, groups)
            return groups, _end(path, tar.offset)
    except (OSError, tarfile.TarError) as error:
        return groups, one_line(error)


def _collect(member: tarfile.TarInfo, groups: list[Group]) -> None:
    folder, slash, file = member.name.rpartition("/")
    stem = file.partition(".")[0]
    suffix = PurePosixPath(file).suffix.lower()
    if not member.isfile() or not stem or not (_extension(file) in TEXTS or suffix in PICTURES | CLIPS):
        return
    if not groups or groups[-1].key != folder + slash + stem:
        groups.append(Group(folder + slash + stem, {}))
    groups[-1].members[member.name] = (member.offset_data, member.size)


def _end(path: Path, offset: int) -> str:
    """What is wrong at the end, where tarfile stops without a word at a damaged header."""
    with path.open("rb") as file:
        block = _read(file, offset, BLOCK)
    return "" if not any(block) else f"damaged header at byte {offset}"


def _shards(pattern: str) -> list[Path]:
    """The tar files of a pattern, which must be there, in natural order of those that a * found."""
    paths: list[Path] = []
    for name in [pattern] if Path(pattern).exists() else _expand(pattern):
        found = [Path(name)] if Path(name).is_file() else sorted(map(Path, _found(name)), key=natural)
        if not found:
            raise InfiniteVLError(f"{name}: no such tar file")
        paths += found
    return paths


def _found(name: str) -> list[str]:
    return [str(path) for path in Path(name).glob("*.tar")] if Path(name).is_dir() else glob(name)


def _expand(pattern: str) -> list[str]:
    """a-{00..02}.tar and a-{x,y}.tar as the names they stand for."""
    braces = BRACES.search(pattern)
    if not braces:
        return [pattern]
    first, dots, last = braces[1].partition("..")
    if dots and first.isdigit() and last.isdigit():
        inside = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    else:
        inside = braces[1].split(",")
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [head + text + rest for text in inside for rest in _expand(tail)]
