import json
from pathlib import Path

import pytest

from helpers import tiny_config
from infinitevl.model.configuration import InfiniteVLConfig, InfiniteVLTextConfig


def test_defaults_are_the_4b():
    config = InfiniteVLConfig()
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.head_dim) == (2048, 36, 128)
    assert (text.num_linear_heads, text.linear_head_dim, text.linear_value_dim) == (16, 128, 256)
    assert [i for i, kind in enumerate(text.layer_types) if kind == "sliding_attention"] == list(range(0, 36, 4))
    assert set(text.layer_types) == {"sliding_attention", "linear_attention"}
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    assert (vision.depth, vision.hidden_size, vision.out_hidden_size) == (32, 1280, 2048)


def test_published_file(shared: Path):
    """Flat, with transformers 4 names: every text field lands in text_config."""
    published = json.loads((shared / "golden" / "published" / "config.json").read_text())
    config = InfiniteVLConfig.from_pretrained(shared / "golden" / "published")
    text = config.text_config
    for name in InfiniteVLTextConfig.__dataclass_fields__.keys() & published.keys():
        if name not in (
            "model_type",
            "architectures",
            "rope_parameters",
            "dtype",
            "torch_dtype",
            "transformers_version",
        ):
            assert getattr(text, name) == published[name], name
    assert text.rope_parameters["rope_theta"] == published["rope_theta"]
    assert text.rope_parameters["mrope_section"] == published["rope_scaling"]["mrope_section"]
    for name, value in published["vision_config"].items():
        if name not in ("model_type", "torch_dtype"):
            assert getattr(config.vision_config, name) == value, name


@pytest.mark.parametrize("sinks", [0, 4])
def test_round_trip(tmp_path: Path, sinks: int):
    config = tiny_config(["full_attention", "linear_attention", "sliding_attention"], attention_sinks=sinks)
    config.save_pretrained(tmp_path)
    again = InfiniteVLConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.text_config.layer_types == ["full_attention", "linear_attention", "sliding_attention"]
    assert again.text_config.attention_sinks == sinks


@pytest.mark.parametrize(
    "given",
    [
        {"rope_theta": 5e4, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        {"rope_scaling": {"type": "default", "rope_type": "default", "rope_theta": 5e4, "mrope_section": [2, 3, 3]}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "mrope_section": [2, 3, 3]}},
    ],
)
def test_rope_forms(given: dict):
    config = InfiniteVLTextConfig(hidden_size=64, num_attention_heads=4, **given)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5e4, "mrope_section": [2, 3, 3]}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_hidden_layers": 3}, "2 layer_types for 3 layers"),
        ({"num_linear_heads": 4, "num_linear_key_value_heads": 2}, "num_linear_key_value_heads"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', not 'gelu'"),
        ({"sliding_window": 0}, "sliding_window must be at least 1"),
        ({"attention_sinks": -1}, "attention_sinks at least 0"),
        ({"linear_rule": "mamba"}, "unknown linear_rule 'mamba': choose from gated_delta, gated, plain"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type 'yarn' is not supported"),
        (
            {"rope_scaling": {"mrope_section": [2, 2, 2]}},
            r"mrope_section \[2, 2, 2\] must add up to half of head_dim, 8",
        ),
    ],
)
def test_mistakes_are_named(wrong: dict, message: str):
    with pytest.raises(Exception, match=message):
        tiny_config(["linear_attention", "sliding_attention"], **wrong)
    with pytest.raises(Exception, match="unknown layer type 'guesswork'"):
        tiny_config(["linear_attention", "guesswork"])
