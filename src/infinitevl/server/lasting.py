"""What a process does that is to run for weeks in memory that does not grow."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_ARENA_MAX = -8  # of glibc's malloc.h


def share_heaps() -> None:
    """Let threads share two heaps: glibc gives each its own, which grow for hours. Before there are threads."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def collect_often() -> None:
    """Take all that is there now out of the garbage collector's sight. Once everything is loaded.

    It looks at old objects when a quarter as many have come on top of them. Beside 400,000 of the model and its
    libraries that is many minutes away, while each answer leaves 190 in cycles (tasks, closures, tracebacks); and
    then nothing else runs for a third of a second.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # now it knows how few the others are


@contextmanager
def collecting_often() -> Iterator[None]:
    """The same for a while: what is never collected is taken for a leak by libraries when the process ends."""
    collect_often()
    try:
        yield
    finally:
        gc.unfreeze()
