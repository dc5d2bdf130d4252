"""What the authors' own implementation computed, and the names and shapes of what they published."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers import assert_close
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model

TOLERANCE = 1e-4  # Frobenius, relative, float32 on a CPU against float32 on a GPU


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "golden" / "reference_a"


@pytest.fixture(scope="module")
def model(reference: Path) -> Model:
    return Model.from_pretrained(reference).eval()


@pytest.fixture(scope="module")
def cases(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "cases.safetensors")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def test_image(model: Model, cases: dict[str, Tensor]):
    pixels, grid, ids = (cases[f"image.{name}"] for name in ("pixel_values", "grid_thw", "input_ids"))
    out = model(ids, pixel_values=pixels, image_grid_thw=grid, output_hidden_states=True)
    positions, delta = model.get_rope_index(ids, grid)
    assert torch.equal(positions, cases["image.position_ids"])
    assert torch.equal(delta, cases["image.rope_delta"])
    assert torch.equal(out.rope_deltas, delta)
    assert_close(model.get_image_features(pixels, grid), cases["image.vision"], TOLERANCE)
    assert len(out.hidden_states) == 9
    for i, hidden in enumerate(out.hidden_states):
        assert_close(hidden, cases[f"image.hidden.{i}"], TOLERANCE)
    assert_close(out.logits, cases["image.logits"], TOLERANCE)


def test_text(model: Model, cases: dict[str, Tensor]):
    logits = model(cases["text.input_ids"], logits_to_keep=64).logits
    assert_close(logits, cases["text.logits_tail"], TOLERANCE)


def test_video(model: Model, cases: dict[str, Tensor]):
    pixels, grid, ids = (cases[f"video.{name}"] for name in ("pixel_values", "grid_thw", "input_ids"))
    assert torch.equal(model.get_rope_index(ids, video_grid_thw=grid)[0], cases["video.position_ids"])
    assert_close(model(ids, pixel_values_videos=pixels, video_grid_thw=grid).logits, cases["video.logits"], TOLERANCE)


def test_stream(model: Model, cases: dict[str, Tensor]):
    """Frames one by one into a carried state, a question, greedy decoding."""
    case = {name.removeprefix("stream."): tensor for name, tensor in cases.items() if name.startswith("stream.")}
    state, ids, positions = model.allocate_state(), case["first_ids"], case["positions_first"]
    for frame, expected in enumerate(case["hidden"]):
        out = model(
            ids, pixel_values=case["frames"][frame], image_grid_thw=case["grid_thw"], position_ids=positions,
            past_key_values=state, output_hidden_states=True,
        )  # fmt: skip
        assert_close(out.hidden_states[-1][0, -16:], expected, TOLERANCE)
        ids, positions = case["first_ids"][:, 1:], case["positions_rest"][min(frame, 14)]
    first = state.position.clone()
    logits = model(case["question_ids"], past_key_values=state).logits
    assert_close(logits, case["question_logits"], TOLERANCE)
    assert torch.equal(first + torch.arange(10), case["question_positions"][0, 0])
    tokens, decoded = [], []
    for _ in range(case["greedy_tokens"].shape[1]):
        tokens.append(logits[:, -1:].argmax(-1))
        logits = model(tokens[-1], past_key_values=state).logits
        decoded.append(logits)
    assert torch.equal(torch.cat(tokens, 1), case["greedy_tokens"])
    assert_close(torch.cat(decoded, 1), case["decode_logits"], TOLERANCE)
    finals = {int(name.split(".")[1]): tensor for name, tensor in case.items() if name.startswith("final_state")}
    assert sorted(finals) == [1, 2, 3, 5, 6, 7]
    for i, final in finals.items():
        assert_close(state.layers[i].memory, final, TOLERANCE)


def shapes(model: Model) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ["reference_a", "published"])
def test_names_and_shapes(shared: Path, name: str):
    folder = shared / "golden" / name
    with torch.device("meta"):
        model = Model(InfiniteVLConfig.from_pretrained(folder))
    assert shapes(model) == json.loads((folder / "state_dict_shapes.json").read_text())


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers 4 wrote them: `visual.*`, `model.layers.*`, `model.embed_tokens.*`, `model.norm.*`."""
    old = {
        n.replace("model.language_model.", "model.").replace("model.visual.", "visual."): t for n, t in tensors.items()
    }
    assert not old.keys() & {n for n in tensors if n != "lm_head.weight"}
    return old


def test_old_prefixes(reference: Path, model: Model, cases: dict[str, Tensor], tmp_path: Path):
    shutil.copy(reference / "config.json", tmp_path)
    save_file(old_names(load_file(reference / "model.safetensors")), tmp_path / "model.safetensors", {"format": "pt"})
    again, info = Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for (name, mine), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_round_trip(model: Model, tmp_path: Path):
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in written  # tied: once is enough
    assert written.keys() == model.state_dict().keys() - {"lm_head.weight"}
    again = Model.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert {**again.config.to_dict(), "_name_or_path": None} == {**model.config.to_dict(), "_name_or_path": None}
    for (name, mine), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_pickles_are_refused(reference: Path, model: Model, tmp_path: Path):
    shutil.copy(reference / "config.json", tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        Model.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="safetensors"):
        Model.from_pretrained(tmp_path, use_safetensors=False)
