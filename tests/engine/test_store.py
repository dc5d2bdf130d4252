"""Files of the store are whole or not there; what is wrong with one is told in one line."""

import re
import uuid
from pathlib import Path

import pytest
import torch

from infinitevl.engine.store import Store
from infinitevl.errors import NotFound, StorageError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model
from infinitevl.model.state import State
from infinitevl.streaming.session import Session, Stats

BAD_NAMES = ["", ".", "..", "../a", "a/b", "a\\b", "/etc/passwd", "a\0b", "a" * 129, "é", ".hidden", "a b", "~", "a\n"]


def filled(model: Model) -> State:
    state = model.allocate_state()
    for tensor in state.tensors().values():
        tensor.copy_(torch.randint(1, 100, tensor.shape))
    return state


SESSION = Session(fps=3.0, last=2.5, phase="video", stats=Stats(frames=7, tokens=99))


@pytest.fixture(params=["local", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "a" / "b") if request.param == "local" else f"memory://{uuid.uuid4()}")


def test_there_and_back(any_store: Store, model: Model):
    state, back = filled(model), model.allocate_state()
    any_store.put("streams", "one", state, SESSION, {"name": "gate", "é": [1]})
    assert any_store.get("streams", "one", back) == (SESSION, {"name": "gate", "é": [1]})
    assert all(torch.equal(a, b) for a, b in zip(state.tensors().values(), back.tensors().values(), strict=True))
    stored = any_store.look("streams", "one")
    assert (stored.frames, stored.about, stored.session) == (7, {"name": "gate", "é": [1]}, SESSION)
    assert stored.bytes == len(b"".join(any_store.read("streams", "one"))) > state.nbytes


def test_names_and_kinds(any_store: Store, model: Model):
    for kind, name in (("streams", "b"), ("streams", "a.1"), ("snapshots", "c")):
        any_store.put(kind, name, filled(model), SESSION, {})  # type: ignore[arg-type]
    assert any_store.names("streams") == ["a.1", "b"]
    assert any_store.names("snapshots") == ["c"]
    any_store.delete("streams", "b")
    any_store.delete("streams", "b")
    assert any_store.names("streams") == ["a.1"]
    assert not any_store.holds("streams", "b")
    for use in (any_store.look, any_store.read):
        with pytest.raises(NotFound, match="no stream b"):
            use("streams", "b")
    with pytest.raises(NotFound, match="no snapshot b"):
        any_store.get("snapshots", "b", model.allocate_state())


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_leads_out_of_the_folder(any_store: Store, model: Model, name: str):
    for use in (
        lambda: any_store.put("streams", name, model.allocate_state(), SESSION, {}),
        lambda: any_store.get("streams", name, model.allocate_state()),
        lambda: any_store.look("streams", name),
        lambda: any_store.read("streams", name),
        lambda: any_store.delete("streams", name),
    ):
        with pytest.raises(NotFound):
            use()


def test_a_write_that_fails_leaves_what_was_there(store: Store, model: Model, monkeypatch: pytest.MonkeyPatch):
    state, back = filled(model), model.allocate_state()
    store.put("streams", "one", state, SESSION, {})

    def full(self: State, path: str, extra: dict[str, str]) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(State, "save", full)
    with pytest.raises(StorageError, match=re.escape("No space left on device")):
        store.put("streams", "one", filled(model), SESSION, {})
    store.get("streams", "one", back)
    assert all(torch.equal(a, b) for a, b in zip(state.tensors().values(), back.tensors().values(), strict=True))
    assert [path.name for path in Path(store.folder, "streams").iterdir()] == ["one.safetensors"]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"x", lambda data: b"\xff" * 99, lambda data: data[:300]]
)
def test_damaged_files(store: Store, model: Model, damage):
    store.put("streams", "one", filled(model), SESSION, {})
    path = Path(store.folder, "streams", "one.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    for use in (lambda: store.look("streams", "one"), lambda: store.get("streams", "one", model.allocate_state())):
        with pytest.raises(StorageError) as error:
            use()
        assert "\n" not in str(error.value)


def test_truncated_and_foreign_files(store: Store, model: Model):
    store.put("streams", "cut", filled(model), SESSION, {})
    path = Path(store.folder, "streams", "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    other = random_model(0, sliding_window=64, num_hidden_layers=5)
    store.put("streams", "other", other.allocate_state(), SESSION, {})
    with pytest.raises(StorageError, match="damaged"):
        store.get("streams", "cut", model.allocate_state())
    with pytest.raises(StorageError, match="another model"):
        store.get("streams", "other", model.allocate_state())


@pytest.mark.parametrize("folder", ["/proc/none/there", "nothing://here"])
def test_a_folder_that_cannot_be(folder: str):
    with pytest.raises(StorageError):
        Store(folder)
