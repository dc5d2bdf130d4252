"""One server for most tests, others for those that need another or end it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from server_kit import Served

from helpers import randomise
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model


@pytest.fixture(scope="session")
def model() -> Model:
    torch.manual_seed(0)
    made = random_model(0, sliding_window=48, num_hidden_layers=5)
    randomise(made)
    with torch.no_grad():
        made.lm_head.weight[list(made.end_tokens())] = 0.0  # answers go on as long as they may
    return made


@pytest.fixture(scope="session")
def served(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Without keys, for tests that leave it as it was."""
    with Served(model, tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture
def stream(served: Served) -> Iterator[str]:
    """A stream of that server that takes every frame."""
    id = served.open()
    yield id
    served.http.delete(f"/v1/streams/{id}")


@pytest.fixture
def serve(model: Model, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Servers of a test's own, all on one folder."""
    running: list[Served] = []

    def start(**options: Any) -> Served:
        running.append(Served(model, options.pop("folder", tmp_path / "state"), **options))
        return running[-1]

    yield start
    for served in running:
        served.stop()
