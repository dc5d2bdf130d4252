"""A worker leaves alone what its parent held."""

import gc
import weakref

import pytest
from torch.utils.data import DataLoader, Dataset

from infinitevl.data.forking import started

FREED: list[str] = []


class Held:
    """In a reference cycle, such as CUDA graphs are."""

    def __init__(self) -> None:
        self.itself = self
        weakref.finalize(self, FREED.append, "freed")


class Collected(Dataset):
    """What a worker frees when it collects."""

    def __getitem__(self, number: int) -> list[str]:
        gc.collect()
        return list(FREED)


@pytest.mark.parametrize("start", [iter, started])
def test_a_worker_does_not_collect_it(start):
    FREED.clear()
    gc.collect()
    gc.disable()
    try:
        Held()  # garbage already
        items = start(DataLoader(Collected(), batch_size=None, sampler=range(2), num_workers=1))
        assert list(items) == [["freed"] * (start is iter)] * 2
        assert not FREED
        gc.collect()
        assert FREED == ["freed"], "this process still collects it"
    finally:
        gc.enable()
