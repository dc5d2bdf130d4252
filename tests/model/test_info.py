"""What `describe` says is what the model, its state and its passes turn out to be."""

import io
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infinitevl.errors import InfiniteVLError
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.info import FRAME, describe, memory_estimate, read_headers, render, working_set
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.state import State

TEXT = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 5,
    "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 16, "attention_sinks": 3,
    "rope_parameters": {"mrope_section": [2, 3, 3]},
}  # fmt: skip
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": 64}


def make(folder: Path, tied: bool = True, dtype: torch.dtype = torch.float32, **saving: Any) -> Model:
    config = InfiniteVLConfig(text_config=TEXT, vision_config=VISION, tie_word_embeddings=tied)
    model: Any = Model(config)
    model.to(dtype)
    model.save_pretrained(folder, **saving)
    return model


def text_of(folder: Path) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render(describe(folder)))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("saving", [{}, {"max_shard_size": "100KB"}], ids=["whole", "shards"])
def test_a_checkpoint(tmp_path: Path, tied: bool, dtype: torch.dtype, saving: dict[str, str]) -> None:
    model = make(tmp_path, tied, dtype, **saving)
    info = describe(tmp_path)
    parameters = sum(p.numel() for p in model.parameters())  # a tied head counts once
    assert (info.model_type, info.dtype) == ("infinite_vl", dtype)
    assert info.layers == {"sliding_attention": 2, "linear_attention": 3}
    assert info.parameters.total == parameters
    assert info.weight_bytes == parameters * dtype.itemsize
    assert info.state.total == model.allocate_state(1).nbytes
    assert info.missing == info.unexpected == info.misshapen == ()


def test_the_parts(tmp_path: Path) -> None:
    model, info = make(tmp_path, tied=False), describe(tmp_path)
    layers, state = model.model.language_model.layers, model.allocate_state(1).tensors()
    norms = [model.model.language_model.norm]
    norms += [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    parts = {
        "vision": [model.model.visual],
        "embeddings": [model.lm_head, model.get_input_embeddings()],
        "attention layers": [layers[i].self_attn for i in (0, 4)],
        "delta layers": [layers[i].self_attn for i in (1, 2, 3)],
        "MLPs": [layer.mlp for layer in layers],
        "norms": norms,
    }
    for part, modules in parts.items():
        assert info.parameters[part] == sum(p.numel() for module in modules for p in module.parameters()), part
    memory = sum(state[f"layers.{i}.memory"].nbytes for i in (1, 2, 3))
    tails = sum(state[f"layers.{i}.tail"].nbytes for i in (1, 2, 3))
    rings = sum(state[f"layers.{i}.{part}"].nbytes for i in (0, 4) for part in ("keys", "values"))
    assert info.state == {
        "GDN memory": memory, "convolution tails": tails, "rings": rings, "counters": 32
    }  # fmt: skip


def test_the_estimate(tmp_path: Path) -> None:
    make(tmp_path)
    info = describe(tmp_path)
    state = info.state.total
    assert memory_estimate(info, 1) == (info.weight_bytes or 0) + state + info.working_bytes
    assert memory_estimate(info, 16) - memory_estimate(info, 1) == 15 * (state + info.working_bytes)
    weights = memory_estimate(info, 0)
    (tmp_path / "model.safetensors").unlink()
    assert describe(tmp_path).weight_bytes is None and memory_estimate(describe(tmp_path), 0) == weights


def test_the_published_configuration(shared: Path) -> None:
    folder = shared / "golden" / "published"
    info, config = describe(folder), InfiniteVLConfig.from_pretrained(folder)
    shapes = json.loads((folder / "state_dict_shapes.json").read_text())
    elements = {name: torch.Size(shape).numel() for name, shape in shapes.items() if name != "lm_head.weight"}
    assert info.parameters.total == sum(elements.values()) == 4_408_381_536
    assert info.layers == {"sliding_attention": 9, "linear_attention": 27} and info.dtype == torch.bfloat16
    assert info.weight_bytes is None and info.missing == ()
    state = State(config.text_config, 1, torch.device("meta"), torch.bfloat16)
    assert info.state.total == state.nbytes
    assert info.state["GDN memory"] + info.state["rings"] == 126 << 20
    assert "not here" in text_of(folder)


def test_the_golden_checkpoint(shared: Path) -> None:
    """Its weights lie under the authors' names; config.json has text fields of theirs."""
    info = describe(shared / "golden" / "reference_a")
    assert info.weight_bytes and info.missing == info.unexpected == info.misshapen == ()


def test_old_names(tmp_path: Path) -> None:
    make(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in tensors.items()
    }
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "model.safetensors")
    info = describe(tmp_path)
    assert info.missing == info.unexpected == () and read_headers(tmp_path).keys() == tensors.keys()


def test_differences(tmp_path: Path) -> None:
    make(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    norm, bias = "model.language_model.norm.weight", "model.language_model.layers.0.self_attn.q_proj.bias"
    del tensors[norm]
    tensors |= {
        bias: torch.ones(7),
        "extra": torch.ones(3, dtype=torch.bool),
        "model.scale": torch.ones(2).int(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    info, text = describe(tmp_path), text_of(tmp_path)
    assert (info.missing, info.misshapen) == ((norm,), (bias,))
    assert set(info.unexpected) == {"extra", "model.scale"}
    assert info.weight_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert all(word in text for word in ("tensors missing", "tensors unexpected", "tensors of another shape"))
    assert "model.scale" in text


def test_the_dtype_of_weights_whose_configuration_names_none(tmp_path: Path) -> None:
    make(tmp_path, dtype=torch.float16)
    values = json.loads((tmp_path / "config.json").read_text())
    for part in (values, values["text_config"], values["vision_config"]):
        part.pop("dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert describe(tmp_path).dtype == torch.float16


def test_the_tables(tmp_path: Path) -> None:
    make(tmp_path)
    text = text_of(tmp_path)
    for words in ("infinite_vl", "float32", "sliding_attention layers", "delta layers", "GDN memory", "rings",
                  f"{FRAME} x {FRAME}", "16 streams"):  # fmt: skip
        assert words in text
    assert "missing" not in text


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor)):
            pointer = storage.data_ptr()
            if pointer not in given and pointer not in self.sizes:
                self.sizes[pointer] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, pointer, None)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out


@pytest.mark.parametrize(
    "text, vision, dtype",
    [
        ({}, {}, torch.bfloat16),  # the delta rule is what takes most
        ({"num_linear_heads": 2}, {"intermediate_size": 8192}, torch.float32),  # the vision tower
        ({"num_linear_heads": 2, "intermediate_size": 24576}, {}, torch.float32),  # the MLP
        ({"num_linear_heads": 2, "sliding_window": 32768}, {}, torch.float32),  # attention
    ],
    ids=["delta", "vision", "mlp", "attention"],
)
def test_the_working_set_is_what_a_frame_takes(
    text: dict[str, int], vision: dict[str, int], dtype: torch.dtype
) -> None:
    """One layer of each kind at the 4B's widths, a frame of 256 tokens into a state. Bfloat16 is slow on a CPU."""
    kinds = {"layer_types": ["sliding_attention", "linear_attention"], "num_hidden_layers": 2}
    config = InfiniteVLConfig(
        text_config={"vocab_size": 256, **kinds, **text},
        vision_config={"depth": 1, **vision},  # layers take their memory one after the other
        image_token_id=9,
    )
    with torch.device("meta"):
        model: Any = Model(config).eval()
    model.to(dtype).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)  # what lies in fresh memory can be slow to multiply
    grid = torch.tensor([[1, FRAME // 14, FRAME // 14]])
    state, ids, pixels = model.allocate_state(1), torch.full((1, 256), 9), torch.zeros(1024, 1176)
    with torch.inference_mode(), Alive() as alive:
        frame = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid}
        model(**frame, past_key_values=state, logits_to_keep=1)
    assert working_set(config, dtype) == pytest.approx(alive.peak, rel=0.25)


def test_errors(tmp_path: Path) -> None:
    def fails(*words: str) -> None:
        with pytest.raises(InfiniteVLError) as caught:
            describe(tmp_path / "model")
        message = str(caught.value)
        assert "\n" not in message and all(word in message for word in words), message

    fails("does not exist")
    (tmp_path / "model").touch()
    fails("not a folder")
    (tmp_path / "model").unlink()
    make(tmp_path / "model")
    config, weights = tmp_path / "model" / "config.json", tmp_path / "model" / "model.safetensors"
    values, data = json.loads(config.read_text()), weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    fails("model.safetensors is truncated or damaged")
    weights.unlink()
    (tmp_path / "model" / "pytorch_model.bin").touch()
    fails("pytorch_model.bin", "refused")
    (tmp_path / "model" / "pytorch_model.bin").unlink()
    for change, word in (
        ({"model_type": "qwen2_5_vl"}, "not a infinite_vl"),
        ({"text_config": {**TEXT, "hidden_act": "gelu"}}, "hidden_act"),
        ({"text_config": {**TEXT, "vocab_size": -3}}, "cannot use"),
    ):
        config.write_text(json.dumps({**values, **change}))
        fails(word)
    config.unlink()
    fails("no config.json")
