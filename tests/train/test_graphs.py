"""What is left when a stage with CUDA graphs ends: nothing. PyTorch's graphs are replaced by what holds them alike."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from train_kit import HYBRID, mixed_batch, small_model

from infinitevl.train.graphs import graphed_layers
from infinitevl.train.stages import embed


class Graph:
    """In the place of a CUDA graph."""

    replayed = 0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """The graphs that were made."""
    found: list[weakref.ref] = []

    def make(callables: tuple[nn.Module, ...], samples: Any, allow_unused_input: bool) -> tuple[nn.Module, ...]:
        for module in callables:
            graph = Graph()
            found.append(weakref.ref(graph))
            _hold(module, graph)
        return callables

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    return found


def _hold(module: Any, graph: Graph) -> None:
    """As torch.cuda.make_graphed_callables: in a class, which is a cycle, and in a closure over the module itself."""
    before = module.forward

    class Graphed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            graph.replayed += 1
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            graph.replayed += 1
            return gradients[0]

    def forward(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return Graphed.apply(before(x, *others)) if module.training else x

    module.forward = forward


def test_nothing_is_left(made: list[weakref.ref]):
    model = small_model()
    model.train()
    batch = mixed_batch(model)
    gc.disable()
    try:
        with graphed_layers(model, batch):
            hidden = embed(model, batch).decode(model.model.language_model)
            hidden.sum().backward()
            assert [ref().replayed for ref in made] == [2] * len(HYBRID)
            del hidden
        assert [ref() for ref in made] == [None] * len(HYBRID)
    finally:
        gc.enable()
    assert all("forward" not in vars(layer) for layer in model.model.language_model.layers)


def test_the_same_layers_run(made: list[weakref.ref]):
    model = small_model()
    batch = mixed_batch(model)
    expected = embed(model, batch).decode(model.model.language_model)
    with graphed_layers(model.train(), batch):
        assert torch.equal(embed(model, batch).decode(model.model.language_model), expected)


def test_an_error_on_the_way_leaves_nothing_either(made: list[weakref.ref], monkeypatch: pytest.MonkeyPatch):
    model = small_model()
    with pytest.raises(KeyError), graphed_layers(model, mixed_batch(model)):
        raise KeyError
    assert [ref() for ref in made] == [None] * len(HYBRID)

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", out_of_memory)
    with pytest.raises(MemoryError), graphed_layers(model, mixed_batch(model)):
        pass
