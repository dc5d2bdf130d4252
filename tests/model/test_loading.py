"""Checkpoints load through us and through transformers' Auto classes; those that cannot say why in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import infinitevl
from infinitevl.errors import InfiniteVLError
from infinitevl.model import loading, modeling
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model, write_random_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def answer(model: Model) -> str:
    stream = model.stream()
    stream.see(np.full((56, 56, 3), 200, np.uint8))
    return "".join(stream.ask("What?", max_new_tokens=4))


def test_it_is_the_model_that_was_written(checkpoint: Path):
    model, written = infinitevl.load(checkpoint), random_model(0)
    assert not model.training
    assert model.device == torch.device("cpu")
    assert all(torch.equal(tensor, written.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert answer(model) == answer(written)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}])
def test_the_model_is_for_one_device(checkpoint: Path, device_map: object):
    model = Model.from_pretrained(checkpoint, device_map=device_map)
    assert len({value.device for value in model.parameters()}) == 1
    for other in (0, "cuda", "disk"):
        with pytest.raises(ValueError, match="device_map names 2 devices: the model is for one"):
            Model.from_pretrained(checkpoint, device_map={"model": other, "lm_head": "cpu"})


def test_a_device_has_several_names():
    named = {"a": 0, "b": "cuda:0", "c": "cuda", "d": torch.device("cuda", 0)}
    assert modeling._on_one_device(named) is named


def test_the_auto_classes(checkpoint: Path):
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    infinitevl.register()
    infinitevl.register()
    assert isinstance(AutoConfig.from_pretrained(checkpoint), infinitevl.InfiniteVLConfig)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert isinstance(model, Model)
    assert isinstance(processor, infinitevl.InfiniteVLProcessor)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "What?"}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    found = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert found.equal(random_model(0).generate(**inputs, max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, torch.float32),
        ("auto", torch.bfloat16),
        ("float32", torch.float32),
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        ("float64", torch.float64),
    ],
)
def test_dtypes(broken: Path, given: str | torch.dtype | None, expected: torch.dtype):
    """None is float32 on a CPU, whatever the checkpoint's; every one streams."""
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    weights = load_file(broken / "model.safetensors")
    save_file({name: t.bfloat16() for name, t in weights.items()}, broken / "model.safetensors", {"format": "pt"})
    model = infinitevl.load(broken, dtype=given)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    answer(model)


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [next(folder.glob(name)).unlink() for name in names] and None


def writing(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def changing(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def pytorch_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def lacking(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.language_model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def misshapen(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.language_model.norm.weight"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def lacking_a_shard(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), "has no config.json"),
        (writing("config.json", "{"), "config.json"),
        (writing("config.json", "{}"), "not an infinite_vl checkpoint, but None"),
        (changing(model_type="llama"), "not an infinite_vl checkpoint, but llama"),
        (changing(model_type="qwen2_5_vl"), "infinitevl convert"),
        (changing(text_config={"hidden_act": "gelu"}), "hidden_act"),
        (without("model.safetensors"), "no .safetensors weights"),
        (pytorch_only, "no .safetensors weights"),
        (truncated, "cannot load"),
        (lacking, "lacks 1 tensors, model.language_model.norm.weight"),
        (misshapen, r"has model.language_model.norm.weight of shape \[3\], not \[128\]"),
        (lacking_a_shard, "model-00001-of-00002.safetensors"),
        (without("tokenizer.json"), "has no tokenizer.json"),
        (writing("tokenizer.json", "{"), "cannot load"),
        (writing("preprocessor_config.json", "{"), "cannot load"),
    ],
)
def test_damaged_checkpoints(broken: Path, damage: Callable[[Path], None], message: str):
    damage(broken)
    with pytest.raises(InfiniteVLError, match=message) as error:
        infinitevl.load(broken)
    assert len(str(error.value).splitlines()) == 1
    assert str(broken) in str(error.value)


@pytest.mark.parametrize("name", ["nothing", "/nothing/here", "./nothing/here", "../nothing", "a/b/c"])
def test_no_such_folder(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "get_hf_file_metadata", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(InfiniteVLError, match="no such checkpoint folder"):
        infinitevl.load(name)


def test_a_file_is_no_folder(checkpoint: Path):
    with pytest.raises(InfiniteVLError, match="no such checkpoint folder"):
        infinitevl.load(checkpoint / "model.safetensors")


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def unreachable(address: str) -> None:
        asked.append(address)
        raise OSError("no network\nat all")

    monkeypatch.setattr(loading, "get_hf_file_metadata", unreachable)
    with pytest.raises(InfiniteVLError, match=r"no folder someone/something here.*\(no network\)"):
        infinitevl.load("someone/something")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float99"}, "unknown dtype 'float99'"),
        ({"dtype": "nn"}, "unknown dtype 'nn'"),
        ({"dtype": "int8"}, "int8"),
        ({"device": "toaster"}, "cannot use the device 'toaster'"),
        ({"device": "cuda:99"}, "cannot use the device 'cuda:99'"),
    ],
)
def test_bad_options(checkpoint: Path, options: dict, message: str):
    with pytest.raises(InfiniteVLError, match=message) as error:
        infinitevl.load(checkpoint, **options)
    assert len(str(error.value).splitlines()) == 1


# The model in the box


@pytest.fixture
def packed() -> Path:
    """The box of this checkout, where there is one."""
    if not (loading.BOX / "config.json").is_file():
        pytest.skip("no model in the box")
    return loading.BOX


def test_the_model_in_the_box(packed: Path):
    """It is small, says what it is, and takes the frames it has been trained on: 16 tokens each."""
    assert sum(file.stat().st_size for file in packed.iterdir()) < 34 * 2**20
    assert (packed / "README.md").is_file()
    model = infinitevl.load()
    settings = model.processor.settings
    assert (settings.min_pixels, settings.max_pixels) == (28 * 28, 112 * 112)
    assert model.config.text_config.sliding_window == 256
    assert {"sliding_attention", "linear_attention"} == set(model.config.text_config.layer_types)
    answer(model)


def test_an_empty_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "BOX", tmp_path)
    with pytest.raises(InfiniteVLError, match="no model in the box"):
        infinitevl.load()
