"""A small model whose answers vary and depend on all that it has seen."""

import pytest
import torch
from stream_kit import WINDOW

from helpers import randomise
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model


@pytest.fixture(scope="session")
def model() -> Model:
    torch.manual_seed(0)
    made = random_model(0, sliding_window=WINDOW)
    randomise(made)
    return made
