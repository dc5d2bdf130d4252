"""What surrounds CUDA graphs: whose state lies where, which graph serves a call, how many are kept."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers import RELATIVE, Model, assert_close, assert_same_state, randomise, text_ids, tiny_model
from infinitevl.model import graphs, pieces
from infinitevl.model.graphs import DESKS, Desk, Graphs, graphs_of, replays
from infinitevl.model.linear import joined
from infinitevl.model.pieces import AT_ONCE, PIECES, piece_of
from infinitevl.model.random_model import random_model
from infinitevl.model.state import State
from infinitevl.streaming import feeding
from infinitevl.streaming.feeding import take_text
from infinitevl.streaming.stream import Stream


class Recorded:
    """In the place of a graph: runs the function on what the graph would read and write."""

    made: int = 0

    def __init__(self, function: Any, inputs: Any, state: State | None, lane: Any) -> None:
        type(self).made += 1
        self.function, self.state, self.tokens = function, state, 0

    def __call__(self, inputs: Any, slots: Any) -> Any:
        return self.function(self.state, *inputs)


class Aside:
    """In the place of a lane and of a stream: writes down who waits for what."""

    def __init__(self, name: str = "beside", told: list | None = None) -> None:
        self.stream, self.name, self.told = self, name, [] if told is None else told

    def wait_event(self, event: Any) -> None:
        self.told.append((self.name, "waits for", event))

    def wait_stream(self, stream: "Aside") -> None:
        self.wait_event(stream.name)

    def record_event(self) -> str:
        self.told.append((self.name, "records"))
        return f"event {len(self.told)}"


def test_results_are_the_callers(model: Model, kept: Graphs):
    """A graph writes its next result where the last one is."""
    result = torch.zeros(1)

    def count(_: None) -> torch.Tensor:
        return result.add_(1)

    first, second = (kept.run(model, "count", count, (), None) for _ in range(2))
    assert (float(first), float(second)) == (1, 2)


def test_a_graph_is_of_its_tensors_alone(model: Model, kept: Graphs):
    """Not of others that get the addresses of those that are gone."""
    slots = torch.tensor([0])
    states = [model.allocate_state(2) for _ in range(2)]
    states[1].count = states[0].count
    for state in (*states, *states):
        kept.run(model, "count", lambda state: state.count + 1, (), state.at(slots))
    assert Recorded.made == 2


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return tiny_model()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    monkeypatch.setattr(graphs, "Graph", Recorded)
    monkeypatch.setattr(Recorded, "made", 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(graphs, "Lane", Aside)
    has_memory(monkeypatch, 10**12)
    return Graphs(limit=3)


def has_memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """The device."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=size))


def test_what_runs_beside_waits_for_its_last_result_to_be_read(kept: Graphs, monkeypatch: pytest.MonkeyPatch):
    told: list = []
    here = Aside("here", told)
    monkeypatch.setattr(graphs, "Lane", lambda: Aside("beside", told))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: here)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(told.append(("on", stream.name))))
    made = torch.zeros(1)

    def make(given: torch.Tensor) -> torch.Tensor:
        return made.add_(given)

    first, second = (kept.beside(torch.device("cpu"), make, torch.ones(1)) for _ in range(2))
    assert (int(first), int(second)) == (1, 2)
    before = [("on", "beside"), ("here", "waits for", "beside"), ("here", "records")]
    assert told == [*before, ("beside", "waits for", "event 3"), *before]


def always_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "replays", lambda *_: True)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (56, 84, 3), dtype=np.uint8)


def fed(model: Model, tokens: int) -> State:
    state = model.allocate_state()
    with torch.inference_mode():
        take_text(model, state, [text_ids(tokens).tolist()])
    return state


def test_a_state_that_makes_room_keeps_what_it_holds(model: Model):
    first, second = fed(model, 5), fed(model, 9)
    before, other = first.fork(), second.fork()
    desk = Desk(first)
    place = desk.state.count.data_ptr()
    assert first.count.data_ptr() == place
    desk.seat(second)
    assert second.count.data_ptr() == place != first.count.data_ptr()
    assert_same_state(first, before)
    assert_same_state(second, other)
    desk.state.reset()
    assert_same_state(first, before)
    assert int(second.count) == 0


def test_a_state_that_is_gone_is_not_kept(model: Model):
    desk = Desk(fed(model, 5))
    second = fed(model, 9)
    before = second.fork()
    desk.seat(second)
    assert_same_state(second, before)


def test_a_branch_lies_where_graphs_are(model: Model):
    """Whoever's state lay there; all of them stay what they were."""
    first, second = fed(model, 5), fed(model, 9)
    before, other = first.fork(), second.fork()
    desk = Desk(first)
    place = desk.state.count.data_ptr()
    first.bound = before.bound = 7  # a graph that feeds it tells this to the state, not to the desk
    for state, same in ((first, before), (second, other), (second, other), (first, before)):
        branch = desk.branch(state)
        assert branch.count.data_ptr() == place and branch.bound == same.bound
        assert_same_state(branch, same)
        desk.seat(branch)
        desk.state.reset()
        assert_same_state(first, before)
        assert_same_state(second, other)
        assert int(branch.count) == 0
    last = desk.branch(second)
    desk.seat(first)
    assert_same_state(last, other)
    assert_same_state(first, before)


def test_streams_whose_states_take_turns(kept: Graphs, monkeypatch: pytest.MonkeyPatch):
    """Frames while an answer is read, forks, answers that are remembered: as without graphs."""

    def lived(model: Any) -> tuple[list[str], list[State]]:
        stream, said = Stream(model, fps=None), []
        for turn in range(3):
            stream.see(picture(turn))
            late = stream.ask("What is it?", max_new_tokens=6)
            said.append(next(late, ""))
            stream.see(picture(10 + turn))
            twin = stream.fork()
            twin.see(picture(20 + turn))
            for each in (stream, twin, stream):
                said.append("".join(each.ask("Where is it?", max_new_tokens=4)))
            said.append("".join(late))
            said.append("".join(stream.ask("And now?", max_new_tokens=3, remember=turn == 1)))
        return said, [stream.state, twin.state]

    made = random_model(0, sliding_window=48).eval()
    randomise(made)
    usual, states = lived(made)
    made.graphs = kept
    kept.limit = 100
    always_replays(monkeypatch)
    monkeypatch.setattr(feeding, "beside", lambda model, make, given: make(given))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    assert lived(made)[0] == usual
    assert Recorded.made > 4 and len(kept._desks) == 1
    for found, expected in zip(lived(made)[1], states, strict=True):
        assert_same_state(found, expected, RELATIVE[torch.float32])


def test_few_batch_sizes_have_desks(model: Model, kept: Graphs):
    """The oldest goes with its graphs; whose state lay there goes on elsewhere."""

    def count(state: State) -> None:
        state.count.add_(1)

    states = [model.allocate_state(size) for size in range(1, DESKS + 3)]
    kept.limit = 100
    for _ in range(2):
        for state in states:
            kept.run(model, "count", count, (), state)
            assert len(kept._desks) == len(kept) <= DESKS
    assert Recorded.made == 2 * len(states)
    assert [state.count.tolist() for state in states] == [[2] * state.batch_size for state in states]
    kept.run(model, "count", count, (), states[-1])
    assert Recorded.made == 2 * len(states)


def test_desks_hold_few_bytes(model: Model, kept: Graphs, monkeypatch: pytest.MonkeyPatch):
    """Of rows that a quarter of the device's memory holds together; one alone may be larger."""

    def count(state: State) -> None:
        state.count.add_(1)

    has_memory(monkeypatch, 4 * 5 * model.allocate_state().nbytes)
    states = [model.allocate_state(size) for size in (1, 2, 3, 2, 9, 1)]
    on_desks = []
    for state in states:
        kept.run(model, "count", count, (), state)
        on_desks.append(list(kept._desks))
    assert on_desks == [[1], [1, 2], [2, 3], [3, 2], [9], [1]]
    assert [state.count.tolist() for state in states] == [[1] * state.batch_size for state in states]


def test_a_graph_per_function_and_shape(model: Model, kept: Graphs):
    """Streams of one batch size share them; those that were not used for longest go."""

    def count(state: State, x: torch.Tensor) -> None:
        state.count.add_(len(x))

    first, second = model.allocate_state(), model.allocate_state()
    for length, state in ((1, first), (1, second), (2, first), (1, first)):
        kept.run(model, "count", count, (torch.zeros(length),), state)
    assert Recorded.made == len(kept) == 2
    assert (int(first.count), int(second.count)) == (4, 1)
    for length in (3, 4, 1):
        kept.run(model, "count", count, (torch.zeros(length),), second)
    assert (Recorded.made, len(kept)) == (4, 3)
    kept.run(model, "count", count, (torch.zeros(2),), second)
    assert Recorded.made == 5
    assert (int(first.count), int(second.count)) == (4, 11)


@pytest.mark.parametrize("made_in_inference", [False, True])
def test_a_model_with_graphs_has_its_weights_side_by_side(made_in_inference: bool):
    """Also one that did not come by `infinitevl.load`, where it is not to be trained; it still can be."""
    with torch.inference_mode(made_in_inference):
        model = tiny_model()
    model.requires_grad_(False)
    parts = [(module, names) for module in model.modules() for names in getattr(module, "joint", ())]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with torch.inference_mode():
        assert not any(joined([getattr(module, name) for name in names]) for module, names in parts)
        assert graphs_of(model) is graphs_of(model) is model.graphs
        assert parts and all(joined([getattr(module, name) for name in names]) for module, names in parts)
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
        model(text_ids(1, 5))
    if not made_in_inference:
        model.requires_grad_(True)
        model(text_ids(1, 5)).logits.sum().backward()


def test_weights_that_are_trained_share_no_storage(model: Model):
    """Who saves them, as accelerate does, would leave out those that do."""
    places = {value.untyped_storage().data_ptr() for value in model.parameters()}
    with torch.inference_mode():
        graphs_of(model)
    assert {value.untyped_storage().data_ptr() for value in model.parameters()} == places
    assert len(places) == len(list(model.parameters()))


def test_packed_sequences_cannot_continue_a_state(kept: Graphs, monkeypatch: pytest.MonkeyPatch):
    model, ids = tiny_model(), text_ids(1, 6)
    model.graphs = kept
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    always_replays(monkeypatch)
    with torch.no_grad(), pytest.raises(ValueError, match="packed sequences"):
        model(ids, seq_idx=torch.tensor([[0, 0, 0, 1, 1, 1]]), use_cache=True)


def test_a_cpu_needs_none(model: Model):
    assert not replays(model)
    fed(model, 3)
    assert model.graphs is None


def test_pieces_hold_what_they_are_for():
    lengths = range(1, PIECES[-1] + 1)
    assert all(piece_of(n) >= n for n in lengths)
    assert [piece_of(n) for n in (1, 2, 8, 33, 256)] == [1, 8, 8, 64, 256]


@pytest.mark.parametrize("time", [1, 7, 8, 41])
@pytest.mark.parametrize("padding", ["none", "left", "anywhere"])
def test_prompts_in_pieces_are_whole(padding: str, time: int, kept: Graphs, monkeypatch: pytest.MonkeyPatch):
    """Pieces of at most 8 tokens a row, then the next chunk: logits of real tokens, and the state."""
    model, found = tiny_model(dtype=torch.float64), {}
    ids, more = text_ids(3, time), text_ids(3, 5)
    shown = torch.ones(3, time, dtype=torch.long)
    if padding == "left":
        shown = (torch.arange(time) >= torch.tensor([0, time // 2, time])[:, None]).long()
    elif padding == "anywhere":
        shown = (torch.rand(3, time) < 0.6).long()
    masks = {} if padding == "none" else {"attention_mask": shown}

    def run() -> tuple[torch.Tensor, torch.Tensor, State]:
        state = model.allocate_state(3)
        with torch.no_grad():
            logits = model(ids, past_key_values=state, **masks).logits * shown[..., None]
            return logits, model(more, past_key_values=state).logits, state

    found["whole"] = run()
    model.graphs, kept.limit = kept, 100
    monkeypatch.setattr(pieces, "AT_ONCE", 3 * 8)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    always_replays(monkeypatch)
    found["pieces"] = run()
    assert {key[3][0][0][1] for key in kept._graphs} <= {1, 8}
    for mine, whole in zip(found["pieces"], found["whole"], strict=True):
        if isinstance(mine, State):
            assert_same_state(mine, whole, RELATIVE[torch.float64])
        else:
            assert_close(mine, whole, RELATIVE[torch.float64])


def test_generate_replays(kept: Graphs, monkeypatch: pytest.MonkeyPatch):
    """Prompt and tokens of two rows, one of them padded: what it writes without graphs."""
    model = tiny_model(dtype=torch.float64).eval()
    ids, mask = text_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    usual = model.generate(ids, **options)
    model.graphs, kept.limit = kept, 100
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    always_replays(monkeypatch)
    assert torch.equal(model.generate(ids, **options), usual)
    assert {key[3][0][0][1] for key in kept._graphs} == {1, 16}


def test_many_rows_are_put_in_by_shorter_pieces(kept: Graphs, monkeypatch: pytest.MonkeyPatch):
    made: list[tuple[int, ...]] = []

    def put(_: State, x: torch.Tensor, *lengths: torch.Tensor) -> torch.Tensor:
        made.append((*x.shape, len(lengths)))
        return x

    always_replays(monkeypatch)
    monkeypatch.setattr(graphs, "run", lambda model, key, put, *inputs, state: put(state, *inputs))
    for rows, time in ((1, 2100), (64, 300), (2 * AT_ONCE, 2)):
        x, lengths = torch.zeros(rows, time), torch.full((rows,), time)
        starts = [start for start, _ in pieces.in_pieces(None, None, "put", put, (x,), lengths)]
        assert starts[:2] == [0, made[0][1]]
        assert sum(shape[1] for shape in made) >= time and {shape[0] for shape in made} == {rows}
        assert all(shape[2] == (shape[1] > time - start) for shape, start in zip(made, starts, strict=True))
        assert max(shape[1] for shape in made) == {1: 1024, 64: 128, 2 * AT_ONCE: 1}[rows]
        made.clear()
