"""A worker leaves alone what its parent held."""

import gc
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from infinitevl.data.forking import spare_processors, started
from infinitevl.evaluation.feeding import Cast, feed
from infinitevl.evaluation.shows import Shown

FREED: list[str] = []


@pytest.mark.parametrize(
    "processors, processes, spare", [(1, 1, 0), (2, 1, 1), (16, 1, 15), (64, 4, 15), (200, 1, 28)]
)
def test_spare_processors(processors: int, processes: int, spare: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert spare_processors() == spare


class Held:
    """In a reference cycle, such as CUDA graphs are."""

    def __init__(self) -> None:
        self.itself = self
        weakref.finalize(self, FREED.append, "freed")


class Collected(Dataset):
    """How many a worker frees when it collects."""

    def __getitem__(self, number: int) -> int:
        gc.collect()
        return len(FREED)


class CollectedShow:
    """The same as the brightness of frames."""

    name, size, length = "collected", 28, 2

    def play(self, seed: int) -> Iterator[Shown]:
        for number in range(self.length):
            yield Shown(np.full((28, 28, 3), Collected()[number], np.uint8))


@pytest.fixture
def garbage() -> Iterator[None]:
    FREED.clear()
    gc.collect()
    gc.disable()
    try:
        Held()
        yield
        assert not FREED
        gc.collect()
        assert FREED == ["freed"], "this process still collects it"
    finally:
        gc.enable()


@pytest.mark.parametrize("start", [iter, started])
def test_a_worker_does_not_collect_it(start: Callable, garbage: None):
    items = start(DataLoader(Collected(), batch_size=None, sampler=range(2), num_workers=1))
    assert list(items) == [int(start is iter)] * 2


def test_nor_does_one_that_plays_streams(garbage: None):
    pieces = list(feed([Cast(CollectedShow(), range(1))], 1, torch.device("cpu")))
    assert torch.cat([frames for frames, _ in pieces]).shape[1] == 2
    assert not any(frames.any() for frames, _ in pieces)
