"""Memory that does not grow while a process serves."""

import gc
from collections import deque
from itertools import repeat

from infinitevl.server import lasting

ALIVE, MADE, STAY = 10_000, 100_000, 400_000  # cycles at a time, as of requests that go on; in all; what stays


class Cycle:
    there = 0

    def __init__(self) -> None:
        self.itself = self
        Cycle.there += 1

    def __del__(self) -> None:
        Cycle.there -= 1


def garbage() -> int:
    """Cycles that are there when as many have come, of which none is of use any more."""
    alive = deque[Cycle](maxlen=ALIVE)
    for _ in repeat(None, MADE):
        alive.append(Cycle())
    return Cycle.there - ALIVE


def test_what_requests_leave_is_collected_beside_much_that_stays():
    many = [[] for _ in range(STAY)]  # as models and libraries are
    thresholds = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    gc.collect()
    try:
        assert garbage() == MADE - ALIVE
        lasting.collect_often()
        assert Cycle.there == 0
        assert garbage() < MADE / 2
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        del many
