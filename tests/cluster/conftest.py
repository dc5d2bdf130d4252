"""A small model whose answers depend on all that it has seen; the helpers of the engine's and the server's tests."""

import sys
from pathlib import Path

import pytest
import torch

from helpers import randomise
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model

sys.path += [str(Path(__file__).parents[1] / part) for part in ("engine", "server")]


@pytest.fixture(scope="session")
def model() -> Model:
    torch.manual_seed(0)
    made = random_model(0, sliding_window=48, num_hidden_layers=5)
    randomise(made)
    return made.eval()
