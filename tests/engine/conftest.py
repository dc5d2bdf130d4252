"""A small model whose answers vary and depend on all that it has seen."""

from pathlib import Path

import pytest
import torch

from helpers import randomise
from infinitevl.engine import answers
from infinitevl.engine.store import Store
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model


@pytest.fixture(scope="session")
def model() -> Model:
    torch.manual_seed(0)
    made = random_model(0, sliding_window=48, num_hidden_layers=5)
    randomise(made)
    return made.eval().to("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture(params=["at once", "ahead"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """When the engine reads tokens: as on a CPU, and as on a GPU."""
    monkeypatch.setattr(answers, "looks_ahead", lambda _: request.param == "ahead")
    return request.param
