"""An evaluation shared by processes that were launched together."""

from collections.abc import Sequence
from typing import Any

from torch import distributed

from infinitevl.evaluation.plan import Run


def rank_and_count() -> tuple[int, int]:
    """Of this process and of all; (0, 1) for one that is alone."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def share(todo: Sequence[Run], rank: int, count: int) -> list[Run]:
    """What this process watches, in order: the longest first go to who has least, alike in all processes."""
    loads, mine = [0] * count, list[int]()
    for i in sorted(range(len(todo)), key=lambda i: -todo[i].work):
        least = loads.index(min(loads))
        loads[least] += todo[i].work
        mine += [i] if least == rank else []
    return [todo[i] for i in sorted(mine)]


def gathered(value: Any) -> list[Any]:
    """That of every process, in order, in each of them."""
    _, count = rank_and_count()
    values = [value] * count
    if count > 1:
        distributed.all_gather_object(values, value)
    return values
