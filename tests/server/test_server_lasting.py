"""Memory that does not grow while a process serves."""

import gc
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context

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


def measured() -> tuple[int, int, int]:
    """Garbage beside much that stays, as models and libraries are: before; left by `collect_often`; after."""
    gc.set_threshold(700, 10, 10)
    many = [[] for _ in range(STAY)]
    gc.collect()
    before = garbage()
    lasting.collect_often()
    left = Cycle.there
    assert len(many) == STAY
    return before, left, garbage()


def test_what_requests_leave_is_collected_beside_much_that_stays():
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:  # its collector sees nothing of the tests
        before, left, after = alone.submit(measured).result()
    assert before == MADE - ALIVE and left == 0 and after < MADE / 2
