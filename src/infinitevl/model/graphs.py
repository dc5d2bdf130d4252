"""CUDA graphs: what a model does with its state at every frame and token, captured once and replayed ever after.

A graph reads and writes fixed addresses. Its inputs are copied into tensors of its own; the state that it changes is
the one on a `Desk`, the only state of its batch size that graphs know. A state that is fed is put on the desk, which
takes over its tensors; the one that lay there before, if anyone still holds it, gets tensors of its own. So a stream
that is fed again and again is never copied, and one that takes turns with others is copied once a turn. A copy that is
to be fed at once is made there (`branch`). Rows of a larger state (`State.at`) stay where they are: their places are
an input like others.

Graphs of one lane share scratch memory, so they run one after the other. There are two lanes: one that follows the
caller's CUDA stream, and one beside it, for what needs no result of the work before it (`beside`).

Threads take turns, a replay or a capture at a time; what a graph returns is copied before the next one, and `State`
moves under a lock. That is not enough yet: on a GPU one thread at a time may feed the streams of a model.

Everywhere but on a GPU the same functions just run.
"""

import gc
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from infinitevl import ops
from infinitevl.model.linear import join
from infinitevl.model.state import AttentionState, State
from infinitevl.model.transfer import pinned, to_device

GRAPHS = 48  # that are kept; each holds its inputs, outputs and launches
DESKS = 8  # batch sizes whose states graphs know; each desk holds a state
DESK_SHARE = 0.25  # of the device's memory: as much as the states on desks take together, if they are more than one
WARMUPS = 2
PLAIN = ("eager", "reference")  # backends that stand for themselves in comparisons, launches and all

_making = threading.Lock()
_capturing = threading.RLock()  # of all models: to begin is to wait for the device, which a capture does not survive

Function = Callable[..., Any]  # (state, *inputs) -> a tensor or None


def run(model: Any, key: Hashable, function: Function, *inputs: Tensor, state: State | None = None) -> Any:
    """function(state, *inputs), replayed from a graph where the model is on a GPU. Inputs may be on the host: they go
    to the model's device, without waiting for it.

    key: of what `function` does besides its inputs' shapes and dtypes: equal keys stand for equal functions. It must
    not wait for the device, nor take anything from the host but what the key names.
    """
    with torch.inference_mode():
        if not replays(model, state):
            return function(state, *(to_device(x, model.device) for x in inputs))
        return graphs_of(model).run(model, key, function, inputs, state)


def beside(model: Any, make: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    """make(given), where graphs replay on a stream beside the caller's: it waits for nothing that is under way there
    but what `given` is, if that is on the device. What comes later on the caller's stream waits for it.

    make: reads nothing else that changes; the last that it calls is `run`.
    """
    if not replays(model):
        return make(given)
    return graphs_of(model).beside(model.device, make, given)


def branch(model: Any, state: State) -> State:
    """`state.fork()` for a copy that is to be fed next: where graphs replay, it is made on their desk.

    state: no rows of a larger one.
    """
    if not replays(model, state):
        return state.fork()
    return graphs_of(model).branch(model.device, state)


def replays(model: Any, state: State | None = None) -> bool:
    """Whether graphs serve this model here and now: states that grow move, and a graph inside another cannot be."""
    if model.device.type != "cuda" or model.training or ops.preferred() in PLAIN:
        return False
    grows = state is not None and any(isinstance(layer, AttentionState) and layer.grows for layer in state.layers)
    return not grows and not torch.cuda.is_current_stream_capturing()


def takes_slots(model: Any) -> bool:
    """Whether the kernels of this model's operations reach rows in their places, all of them, in one graph."""
    from infinitevl.ops.triton import kinds

    text = model.config.text_config
    widths = text.head_dim, text.linear_head_dim, text.linear_value_dim, text.conv_size
    return kinds.in_slots(model.dtype, *widths, text.linear_rule)


def graphs_of(model: Any) -> "Graphs":
    """Those of a model; with the first, weights that are not to be trained are laid side by side: who saves those
    that are may not know tensors that share storage."""
    with _making:
        if model.graphs is None:
            if not any(parameter.requires_grad for parameter in model.parameters()):
                join(model)
            model.graphs = Graphs()
        return model.graphs


class Desk:
    """The tensors that graphs of one batch size work on, and whose state lies there."""

    def __init__(self, state: State) -> None:
        self.state = state.view()
        self._owner = weakref.ref(state)

    def seat(self, state: State) -> None:
        """From here on the tensors of `state` are the desk's, until another one is seated."""
        if self._owner() is not state:
            self._send_away()
            self.state.copy_(state)
            state.adopt(self.state)
            self._owner = weakref.ref(state)

    def branch(self, state: State) -> State:
        """A copy of `state`, seated."""
        if self._send_away() is not state:
            self.state.copy_(state)
        made = self.state.view()
        made.bound = state.bound
        self._owner = weakref.ref(made)
        return made

    def _send_away(self) -> State | None:
        """Give whose state lies here tensors of its own, which hold the same; None where it is held no more."""
        owner = self._owner()
        if owner is not None:
            owner.adopt(self.state.fork())
        return owner


class Lane:
    """What graphs have in common that never run at the same time: scratch memory, and a stream to be captured on, with
    which the workspaces of libraries go."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()


class Graph:
    """One captured function. Its tensors stay where they are as long as it lives."""

    def __init__(self, function: Function, inputs: tuple[Tensor, ...], state: State | None, lane: Lane) -> None:
        self._function = function  # and what it holds on to, which the graph reads
        self.inputs = tuple(x.to(lane.stream.device, copy=True) for x in inputs)
        self.graph = torch.cuda.CUDAGraph()
        self.slots: Tensor | None = None
        if state is not None and state.slots is not None:
            self.slots = torch.full_like(state.slots, -1)  # all rows rest, so that nothing changes now
            state = state.at(self.slots)
        bound = state.bound if state is not None else 0
        with nullcontext() if self.slots is not None else _unchanged(state):
            _warm_up(function, self.inputs, state, lane.stream)
            capture = torch.cuda.graph(self.graph, lane.pool, lane.stream, capture_error_mode="thread_local")
            with _capturing, _no_collection(), capture:
                self.outputs = function(state, *self.inputs)
            self.tokens = (state.bound - bound) // (WARMUPS + 1) if state is not None else 0

    def __call__(self, inputs: tuple[Tensor, ...], slots: Tensor | None) -> Any:
        if self.slots is not None and slots is not None:
            self.slots.copy_(slots)
        for mine, given in zip(self.inputs, inputs, strict=True):
            if mine.data_ptr() != given.data_ptr():
                mine.copy_(given if given.is_cuda else pinned(given), non_blocking=True)
        self.graph.replay()
        return self.outputs


class Graphs:
    """The graphs of a model, by what they do, and their desks, by batch size; of both, the one that was not used for
    longest goes when there are too many, or desks hold too many bytes, a desk with its graphs."""

    def __init__(self, limit: int = GRAPHS) -> None:
        self.limit = limit
        self._graphs: OrderedDict[tuple[Hashable, ...], Graph] = OrderedDict()
        self._desks: OrderedDict[int, Desk] = OrderedDict()
        self._lanes: dict[bool, Lane] = {}  # whether beside the caller's stream
        self._read: Any = None  # when the last result from beside had been copied
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._graphs)

    def __deepcopy__(self, memo: dict) -> "Graphs":
        return Graphs(self.limit)

    def __reduce__(self) -> tuple:
        return Graphs, (self.limit,)

    def run(
        self, model: Any, key: Hashable, function: Function, inputs: tuple[Tensor, ...], state: State | None
    ) -> Any:
        shapes = tuple((x.shape, x.dtype) for x in inputs)
        with self._lock, torch.cuda.device(model.device):
            there = None if state is None else self._place(state)
            at = None if there is None else (there.place, there.batch_size)
            aside = True in self._lanes and self._lanes[True].stream == torch.cuda.current_stream()
            known = key, at, aside, shapes, ops.preferred(), model.lm_head.weight.data_ptr()
            graph = self._graphs.get(known) or self._capture(known, function, inputs, there, self._lane(aside))
            self._graphs.move_to_end(known)
            if state is not None:
                state.bound += graph.tokens
            found = graph(inputs, None if state is None else state.slots)
            return found if aside or found is None else found.clone()  # before another thread's graph writes there

    def branch(self, device: torch.device, state: State) -> State:
        with self._lock, torch.cuda.device(device):
            return self._desk(state).branch(state)

    def beside(self, device: torch.device, make: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        with self._lock, torch.cuda.device(device):
            here, there = torch.cuda.current_stream(), self._lane(True).stream
            if self._read is not None:
                there.wait_event(self._read)
            if given.is_cuda:
                there.wait_stream(here)
            with torch.cuda.stream(there):
                made = make(given)
            here.wait_stream(there)
            copy = made.clone()  # on the caller's stream, which may be late
            self._read = here.record_event()
            return copy

    def _lane(self, aside: bool) -> Lane:
        if aside not in self._lanes:
            self._lanes[aside] = Lane()
        return self._lanes[aside]

    def _place(self, state: State) -> State:
        """What graphs read and write for `state`: places that it names, or the desk, on which it is put."""
        if state.slots is not None:
            return state
        desk = self._desk(state)
        desk.seat(state)
        return desk.state

    def _desk(self, state: State) -> Desk:
        """The one of its batch size; its own tensors, where there was none."""
        desk = self._desks.get(state.batch_size)
        if desk is None:
            while self._desks and not self._has_room(state):
                self._clear_oldest()
            desk = self._desks[state.batch_size] = Desk(state)
        self._desks.move_to_end(state.batch_size)
        return desk

    def _has_room(self, state: State) -> bool:
        """For one more desk."""
        taken = sum(desk.state.nbytes for desk in self._desks.values()) + state.nbytes
        memory = torch.cuda.get_device_properties(state.count.device).total_memory
        return len(self._desks) < DESKS and taken <= DESK_SHARE * memory

    def _clear_oldest(self) -> None:
        """Who lies on that desk keeps its tensors."""
        _, desk = self._desks.popitem(last=False)
        at = desk.state.place, desk.state.batch_size
        for key in [key for key in self._graphs if key[1] == at]:
            del self._graphs[key]

    def _capture(
        self,
        key: tuple[Hashable, ...],
        function: Function,
        inputs: tuple[Tensor, ...],
        state: State | None,
        lane: Lane,
    ) -> Graph:
        while len(self._graphs) >= self.limit:
            self._graphs.popitem(last=False)
        graph = Graph(function, inputs, state, lane)
        self._graphs[key] = graph
        return graph


@contextmanager
def _unchanged(state: State | None) -> Iterator[None]:
    """What is done to `state` inside is undone."""
    if state is None:
        yield
        return
    before = state.fork()
    try:
        yield
    finally:
        state.copy_(before)


def _warm_up(function: Function, inputs: tuple[Tensor, ...], state: State | None, stream: Any) -> None:
    """Compile kernels and fill caches, on a stream that is not the usual one, as capturing asks for."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            function(state, *inputs)
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A graph or tensor that is collected while another is captured would end the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
