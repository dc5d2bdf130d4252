"""The log of what was left out of training: which sample, and why."""

import json
import re
from collections import Counter
from pathlib import Path

from infinitevl.errors import InfiniteVLError

MAX_REASON = 300  # characters


class Skipped:
    """Counts the bad samples by kind of reason in `counts`, and appends each to `path` as a line of JSON.

    So no sample is lost silently. Processes may share `path`.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.counts: Counter[str] = Counter()
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
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "reason": reason}) + "\n")

    def __str__(self) -> str:
        """One line: `3 samples skipped: 2 missing file, 1 broken JSON`."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common())
        return f"{self.counts.total()} samples skipped" + (f": {kinds}" if kinds else "")


def _kind(reason: str) -> str:
    """What a reason has in common with others like it: without its numbers, leading file name and details."""
    parts = [part for part in reason.split(": ") if not re.search(r"[/\\]|\.\w+$", part)] or [reason]
    return re.sub(r"\d+", "N", parts[0])
