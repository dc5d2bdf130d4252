"""Constant size, fixed addresses, and files that are whole or not there."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import HYBRID, MIXED, assert_close, assert_same_state, text_ids, tiny_model
from infinitevl.errors import InfiniteVLError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.state import FIRST_CAPACITY, State


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(HYBRID)


def filled(model: Model, batch: int = 2, tokens: int = 50) -> State:
    state = model.allocate_state(batch)
    for ids in text_ids(batch, tokens).split(500, 1):
        model(ids, past_key_values=state)
    return state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch, sinks", [(1, 0), (3, 4)])
def test_nbytes(batch: int, sinks: int, dtype: torch.dtype):
    """By the table: memory of heads K V in float32, tails and rings in the model's dtype, four counters."""
    state = tiny_model(["sliding_attention", "linear_attention"], dtype, attention_sinks=sinks).allocate_state(batch)
    heads, key, value, window, groups, width = 3, 8, 16, 32, 2, 16
    memory = heads * key * value * max(4, dtype.itemsize)
    tail = 3 * heads * (2 * key + value) * dtype.itemsize
    ring = 2 * groups * (sinks + window) * width * dtype.itemsize
    assert state.nbytes == batch * (memory + tail + ring + 4 * 8)


def test_4b_is_about_126_mib():
    from infinitevl.model.configuration import InfiniteVLTextConfig

    state = State(InfiniteVLTextConfig(), 1, torch.device("meta"), torch.bfloat16)
    assert 124 < state.nbytes / 2**20 < 128


def addresses(state: State) -> dict[str, tuple[int, int]]:
    return {name: (tensor.data_ptr(), tensor.nbytes) for name, tensor in state.tensors().items()}


def test_constant_after_100_000_tokens():
    model = tiny_model(["sliding_attention", "linear_attention"], attention_sinks=2)
    state = model.allocate_state()
    size, places = state.nbytes, addresses(state)
    model(text_ids(1, 100), past_key_values=state, logits_to_keep=1)
    assert (state.nbytes, addresses(state)) == (size, places)
    for _ in range(100):
        logits = model(text_ids(1, 1000), past_key_values=state, logits_to_keep=1).logits
    assert (state.nbytes, addresses(state)) == (size, places)
    assert int(state.count) == int(state.position) == state.get_seq_length() == 100_100
    assert logits.isfinite().all()
    assert 0.1 < state.layers[1].memory.std() < 100


def test_full_attention_grows_by_doubling_and_nothing_else_does():
    state = filled(tiny_model(MIXED), tokens=FIRST_CAPACITY)
    size = state.nbytes
    assert state.layers[0].keys.shape[2] == FIRST_CAPACITY
    others = {name: place for name, place in addresses(state).items() if not name.startswith("layers.0.")}
    grown = filled(tiny_model(MIXED), tokens=FIRST_CAPACITY + 1)
    assert grown.layers[0].keys.shape[2] == 2 * FIRST_CAPACITY
    assert grown.nbytes - size == 2 * state.layers[0].keys.nbytes
    state.reserve(1)
    assert {n: p for n, p in addresses(state).items() if not n.startswith("layers.0.")} == others


def test_in_place_operations_keep_addresses(model: Model, tmp_path: Path):
    state, other = filled(model), filled(model, tokens=9)
    places = addresses(state)
    other.save(tmp_path / "state")
    fork = state.fork()
    assert not {p for p, _ in addresses(fork).values()} & {p for p, _ in places.values()}
    assert_same_state(fork, state)
    state.copy_(other)
    assert_same_state(state, other)
    state.load(tmp_path / "state")
    state.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(state.layers[1].memory, other.layers[1].memory[[1, 0]])
    state.reset(torch.tensor([True, False]))
    assert state.count.tolist() == [0, 9]
    state.reset()
    assert all(not tensor.any() for tensor in state.tensors().values())
    assert addresses(state) == places


@pytest.mark.parametrize(
    "other", [{"batch": 3}, {"layers": HYBRID[:4]}, {"layers": (*HYBRID, HYBRID[0])}, {"layers": MIXED}]
)
def test_copies_of_other_states_are_refused(model: Model, other: dict):
    state, theirs = filled(model), filled(tiny_model(other.get("layers", HYBRID)), other.get("batch", 2), 20)
    before = state.fork()
    with pytest.raises(ValueError, match=r"states differ in .*different models or batch sizes"):
        state.copy_(theirs)
    assert_same_state(state, before)


def test_copy_of_a_state_that_grew_and_was_reset():
    model = tiny_model(MIXED)
    source, target = filled(model, tokens=700).reset(), filled(model, tokens=5)
    ids = text_ids(2, 30)
    model(ids, past_key_values=source)
    target.copy_(source)
    more = text_ids(2, 20)
    assert_close(model(more, past_key_values=target).logits, model(torch.cat([ids, more], 1)).logits[:, 30:], 1e-5)


def test_video_opens_where_the_state_is(model: Model):
    state = filled(model, tokens=12)
    state.open_video()
    assert state.base.tolist() == [24, 24]  # 12 tokens, and a run of 12: where a picture would begin


@pytest.mark.parametrize("tokens", [10, FIRST_CAPACITY + 50])
def test_files_of_growing_layers(tmp_path: Path, tokens: int):
    """Saved before or after growth, loaded into a state that has grown more, or less."""
    model = tiny_model(MIXED)
    state = filled(model, tokens=tokens)
    state.save(tmp_path / "state")
    more = text_ids(2, 40)
    expected = model(more, past_key_values=state.fork()).logits
    for before in (1, 700):  # tokens it held until now
        restored = filled(model, tokens=before)
        restored.load(tmp_path / "state")
        assert_close(model(more, past_key_values=restored).logits, expected, 1e-5)


def test_extra_comes_back(model: Model, tmp_path: Path):
    state = filled(model)
    extra = {"source": "camera 1", "note": "ü\n"}
    state.save(tmp_path / "state", extra)
    assert model.allocate_state(2).load(str(tmp_path / "state")) == extra


def test_failed_save_keeps_the_old_file(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state"
    filled(model).save(path)
    before = path.read_bytes()
    state = filled(model)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(InfiniteVLError, match=r"^cannot write .*state: No space left on device$"):
            state.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    state.save(path)
    assert path.read_bytes() != before


def test_save_where_there_is_no_folder(model: Model, tmp_path: Path):
    with pytest.raises(InfiniteVLError, match=r"^cannot write [^\n]*$"):
        filled(model).save(tmp_path / "none" / "state")


def rewritten(path: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor | None) -> None:
    """Change metadata and tensors of a saved state."""
    with safe_open(path, "pt") as file:
        old = file.metadata()
    kept = {name: tensor for name, tensor in {**load_file(path), **tensors}.items() if tensor is not None}
    save_file(kept, path, {**old, **(metadata or {})})


def other_model(**text: object):
    def write(path: Path) -> None:
        filled(tiny_model(**{"layer_types": HYBRID, **text})).save(path)

    return write


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGE = {
    "missing": (lambda p: p.unlink(), "no such state file"),
    "empty": (lambda p: p.write_bytes(b""), "not a state file, or is damaged"),
    "not safetensors": (lambda p: p.write_bytes(os.urandom(5000)), "not a state file, or is damaged"),
    "header cut": (lambda p: truncate(p, 100), "not a state file, or is damaged"),
    "tensors cut": (lambda p: truncate(p, p.stat().st_size - 1), "not a state file, or is damaged"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "not a state file, or is damaged"),
    "no state": (lambda p: save_file({"x": torch.randn(3)}, p), "safetensors file, but not a saved state"),
    "version": (lambda p: rewritten(p, {"version": "7"}), "is a state of version 7; this is version 1"),
    "metadata": (lambda p: rewritten(p, {"model": "{"}), "damaged"),
    "bound": (lambda p: rewritten(p, {"bound": "many"}), "damaged"),
    "window": (other_model(sliding_window=16), "another model: its sliding_window is 16, here 32"),
    "heads": (other_model(num_linear_heads=2), "another model: its num_linear_heads is 2, here 3"),
    "layers": (other_model(layer_types=HYBRID[:4]), "another model: its layer_types is"),
    "rope": (other_model(rope_theta=5e5), "another model: its rope_parameters is"),
    "dtype": (other_model(dtype=torch.bfloat16), "as torch.bfloat16, the model here needs torch.float32"),
    "tensor gone": (lambda p: rewritten(p, **{"layers.1.memory": None}), "lacks layers.1.memory"),
    "shape": (
        lambda p: rewritten(p, run=torch.zeros(3).long()),
        r"holds run of shape \[3\], the state here has \[2\]",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_bad_files_are_refused(model: Model, tmp_path: Path, kind: str):
    """One line that names what is wrong, and the state as it was."""
    damage, message = DAMAGE[kind]
    path, state = tmp_path / "state", filled(model)
    filled(model).save(path)
    damage(path)
    before, places = state.fork(), addresses(state)
    with pytest.raises(InfiniteVLError, match=message) as error:
        state.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert_same_state(state, before)
    assert (state.bound, addresses(state)) == (before.bound, places)


def test_refused_files_do_not_grow_a_state(tmp_path: Path):
    path, model = tmp_path / "state", tiny_model(MIXED)
    filled(model, tokens=FIRST_CAPACITY + 1).save(path)
    rewritten(path, run=torch.zeros(3).long())
    state = filled(model, tokens=5)
    size = state.nbytes
    with pytest.raises(InfiniteVLError, match="holds run of shape"):
        state.load(path)
    assert (state.nbytes, state.bound) == (size, 5)


def test_batch_sizes_differ(model: Model, tmp_path: Path):
    filled(model, batch=3).save(tmp_path / "state")
    with pytest.raises(InfiniteVLError, match=r"of shape \[3\], the state here has \[2\]"):
        filled(model).load(tmp_path / "state")


def test_file_is_plain_safetensors(model: Model, tmp_path: Path):
    state = filled(model)
    state.save(tmp_path / "state")
    with safe_open(tmp_path / "state", "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(state.tensors())
    assert (metadata["format"], metadata["version"]) == ("infinitevl-state", "1")
    assert json.loads(metadata["model"])["layer_types"] == list(HYBRID)
