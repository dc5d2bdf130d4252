"""One server with a tiny random model, and each client of it in turn."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from client_kit import Served, both

from helpers import randomise
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model


@pytest.fixture(scope="session")
def model() -> Model:
    torch.manual_seed(0)
    made = random_model(0, sliding_window=48, num_hidden_layers=5)
    randomise(made)
    return made


@pytest.fixture(scope="session")
def served(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(model, tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture(params=["blocking", "awaiting"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def client(kind: str, served: Served) -> Iterator[Any]:
    with both(kind, served.url) as client:
        yield client
        for stream in client.streams.list():
            client.streams.delete(stream.id)
