"""The log of what was left out of training: which sample, and why."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from infinitevl.errors import InfiniteVLError

MAX_REASON = 300  # characters


@dataclass
class Tally:
    """What has been reported of one source since it last looked. name: the source's, unique in its log."""

    name: str
    bad: int = 0
    first: str = ""


class Skipped:
    """Counts the bad samples by kind of reason in `counts`, and appends each to `path` as a line of JSON.

    Everything that meets a sample it cannot use, from reading to packing, tells it here, so that no sample is
    lost silently and a source without a single good sample is noticed. Processes may share `path`.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.counts: Counter[str] = Counter()
        self._tallies: dict[str, Tally] = {}
        if self.path:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.open("a").close()
            except OSError as error:
                raise InfiniteVLError(f"{self.path}: cannot be written ({error.strerror})") from None

    def add(self, name: str, reason: str) -> None:
        """`name` is the sample's, `reason` one line, such as the text of a BadSample (its leading name is dropped)."""
        reason = " ".join(reason.removeprefix(f"{name}: ").split())[:MAX_REASON]
        self.counts[_kind(reason)] += 1
        for tally in self._tallies.values():
            if name.startswith(f"{tally.name}:"):
                tally.bad += 1
                tally.first = tally.first or f"{name}: {reason}"
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "reason": reason}) + "\n")

    def watch(self, source: str) -> Tally:
        """The tally of a source, whose samples' names begin with the tally's name and a colon."""
        name, copy = source, 1
        while name in self._tallies:
            name, copy = f"{source} ({copy + 1})", copy + 1
        return self._tallies.setdefault(name, Tally(name))

    def __str__(self) -> str:
        """One line: `3 samples skipped: 2 missing file, 1 broken JSON`."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common())
        return f"{self.counts.total()} samples skipped" + (f": {kinds}" if kinds else "")


def _kind(reason: str) -> str:
    """What a reason has in common with others like it: without its numbers, leading file name and details."""
    parts = [part for part in reason.split(": ") if not re.search(r"[/\\]|\.\w+$", part)] or [reason]
    return re.sub(r"\d+", "N", parts[0])
