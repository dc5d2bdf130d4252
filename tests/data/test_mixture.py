"""Proportions, epochs, ranks and exact resuming of mixtures."""

import json
import math
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pytest
from data_kit import number, talk, write_lines, write_tars

from infinitevl.data.mixture import Mixture
from infinitevl.data.readers import open_samples
from infinitevl.errors import InfiniteVLError


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Sources of 23 rows of short answers and of 7 of long ones, numbered from 100."""
    short = write_lines(tmp_path / "short.jsonl", [talk(n) for n in range(23)])
    return [short, write_tars(tmp_path, [talk(100 + n) for n in range(7)])]


def mixed(paths: list[Path], seed: int = 0, **options: Any) -> Mixture:
    return Mixture([(open_samples(path, shuffle=True), 4 - 3 * at) for at, path in enumerate(paths)], seed, **options)


def draw(mixture: Mixture, count: int) -> list[int]:
    return [number(candidate.sample()) for _, candidate in islice(mixture, count)]


def test_four_parts_to_one(paths: list[Path]) -> None:
    count = 4000
    long = sum(number >= 100 for number in draw(mixed(paths), count))
    assert abs(long - count / 5) < 3 * math.sqrt(count * 0.2 * 0.8)


def test_every_epoch_is_whole(paths: list[Path]) -> None:
    found = draw(mixed(paths), 400)
    for sort, size in ((lambda n: n < 100, 23), (lambda n: n >= 100, 7)):
        part = [number for number in found if sort(number)]
        assert len(part) > 2 * size
        for start in range(0, len(part) - size, size):
            assert len({*part[start : start + size]}) == size


def test_seeds(paths: list[Path]) -> None:
    assert draw(mixed(paths), 50) == draw(mixed(paths), 50) != draw(mixed(paths, seed=1), 50)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (2, 3)])
def test_resumes_anywhere(paths: list[Path], rank: int, world_size: int) -> None:
    mixture, states, found = mixed(paths, rank=rank, world_size=world_size), [], []
    for _ in range(60):
        states.append(json.dumps(mixture.state_dict()))
        found += draw(mixture, 1)
    for position in range(50):
        resumed = mixed(paths, rank=rank, world_size=world_size)
        resumed.load_state_dict(json.loads(states[position]))
        assert draw(resumed, 10) == found[position : position + 10]
    with pytest.raises(InfiniteVLError, match="another seed or rank"):
        mixed(paths, seed=1, rank=rank, world_size=world_size).load_state_dict(mixture.state_dict())


def test_ranks_share_every_epoch(paths: list[Path]) -> None:
    """The first epoch of the short source, put together from what each rank sees of it."""
    first: list[int] = []
    for rank in range(4):
        mixture = mixed(paths, rank=rank, world_size=4)
        drawn = takewhile(lambda _, reader=mixture.readers[0]: reader.epoch == 0, mixture)
        first += [number(candidate.sample()) for source, candidate in drawn if source == 0]
    assert sorted(first) == list(range(23))


def test_ranks_choose_independently(paths: list[Path]) -> None:
    chosen = [[n < 100 for n in draw(mixed(paths, rank=rank, world_size=2), 50)] for rank in range(2)]
    assert chosen[0] != chosen[1]


def test_a_source_without_rows(paths: list[Path]) -> None:
    write_lines(paths[0], [])
    with pytest.raises(InfiniteVLError, match=r"short.jsonl: no samples in it"):
        draw(mixed(paths), 50)


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_weights(paths: list[Path], weight: float) -> None:
    with pytest.raises(InfiniteVLError, match="weight above 0"):
        Mixture([(open_samples(paths[0]), weight)])
    with pytest.raises(InfiniteVLError, match="needs sources"):
        Mixture([])
