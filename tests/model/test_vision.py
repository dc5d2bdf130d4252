"""The tower equals transformers' Qwen2.5-VL tower; a text model of full attention layers equals its language model."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from helpers import TEXT, VISION, assert_close, randomise, relative, text_ids, tiny_config, tiny_model
from infinitevl.model.configuration import InfiniteVLVisionConfig
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.positions import Grid
from infinitevl.model.vision import VisionTower

qwen = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")

GRIDS = {
    "one window": ((1, 8, 8),),
    "less than a window": ((1, 2, 6),),
    "whole windows": ((1, 16, 24),),
    "windows not filled": ((1, 10, 22),),
    "a row": ((1, 2, 40),),
    "equal images": ((1, 12, 8), (1, 12, 8)),
    "other images": ((1, 4, 6), (1, 18, 10), (1, 8, 8)),
    "a video": ((4, 10, 6),),
    "images and a video": ((1, 6, 8), (3, 10, 12), (1, 2, 2)),
}
CONFIG = {**VISION, "depth": 3, "fullatt_block_indexes": [1]}


@pytest.fixture(scope="module")
def towers() -> tuple[VisionTower, torch.nn.Module]:
    theirs = qwen.Qwen2_5_VisionTransformerPretrainedModel(qwen.Qwen2_5_VLVisionConfig(**CONFIG)).eval()
    randomise(theirs)
    ours = VisionTower(InfiniteVLVisionConfig(**CONFIG)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def patches(grid: Grid) -> torch.Tensor:
    return torch.randn(sum(t * h * w for t, h, w in grid), 1176)


@pytest.mark.parametrize("name", GRIDS)
@torch.no_grad()
def test_equals_qwen(towers: tuple[VisionTower, torch.nn.Module], name: str):
    (ours, theirs), grid = towers, GRIDS[name]
    x = patches(grid)
    expected = theirs(x, grid_thw=torch.tensor(grid)).pooler_output
    found = ours(x, ours.plan(grid, x.device))
    assert_close(found, expected, 1e-5)
    assert relative(found.flip(0), expected) > 1e-2


@torch.no_grad()
def test_pictures_do_not_see_each_other(towers: tuple[VisionTower, torch.nn.Module]):
    """Several at once equal one by one; a video's steps equal images."""
    ours, grid = towers[0], ((1, 4, 6), (2, 10, 6))
    x = patches(grid)
    together = ours(x, ours.plan(grid, x.device))
    parts = [
        ours(y, ours.plan(g, x.device))
        for y, g in zip(x.split([24, 60, 60]), [((1, 4, 6),)] + 2 * [((1, 10, 6),)], strict=True)
    ]
    assert_close(together, torch.cat(parts), 1e-5)


@pytest.mark.parametrize("name", ["whole windows", "images and a video"])
def test_forward_needs_no_host(towers: tuple[VisionTower, torch.nn.Module], name: str):
    """With a plan the forward pass is a graph of tensors: traced without values, which a host read forbids."""
    ours, grid = towers[0], GRIDS[name]
    plan, x = ours.plan(grid, torch.device("cpu")), patches(grid)
    graph = make_fx(lambda y: ours(y, plan), tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    assert not [
        node for node in graph.graph.nodes if "local_scalar" in str(node.target) or "nonzero" in str(node.target)
    ]
    with torch.no_grad():
        assert_close(graph(x), ours(x, plan), 1e-6)


def test_a_host_read_would_be_found():
    def reads(y: torch.Tensor) -> torch.Tensor:
        return y * 2 if y.sum() > 0 else y

    with pytest.raises(GuardOnDataDependentSymNode):
        make_fx(reads, tracing_mode="fake")(torch.randn(3))


@pytest.mark.parametrize("grid", [((1, 3, 4),), ((1, 4, 5),), ((0, 4, 4),), ((1, 4, 4), (1, 0, 2))])
def test_grids_that_cannot_be_merged(towers: tuple[VisionTower, torch.nn.Module], grid: Grid):
    with pytest.raises(ValueError, match="must be multiples of 2 patches"):
        towers[0].plan(grid, torch.device("cpu"))


def test_patches_that_do_not_fill_the_grid():
    with pytest.raises(ValueError, match="20 patches for grids of 24"):
        tiny_model(["linear_attention"]).encode(torch.randn(20, 1176), ((1, 4, 6),))


@torch.no_grad()
def test_text_equals_qwen():
    """Layers of full attention only: whole, and token by token through the state."""
    layers, text = ["full_attention"] * 3, {name: TEXT[name] for name in TEXT if "linear" not in name}
    text |= {"num_hidden_layers": 3, "layer_types": layers, "rms_norm_eps": 1e-6, "head_dim": 8, "rope_theta": 1e4}
    text["rope_scaling"] = {"type": "default", "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    ours = Model(tiny_config(**text)).eval()
    theirs = qwen.Qwen2_5_VLForConditionalGeneration(
        qwen.Qwen2_5_VLConfig(
            text_config={**{n: v for n, v in text.items() if not n.startswith("rope")}, "rope_parameters": rope},
            vision_config=VISION, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    randomise(theirs)
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing.missing_keys
    ids = text_ids(2, 70)
    expected = theirs(ids).logits
    assert expected.std() > 0.1
    assert_close(ours(ids).logits, expected, 1e-5)
    state = ours.allocate_state(2)
    pieces = [ours(x, past_key_values=state).logits for x in ids.split(7, 1)]
    assert_close(torch.cat(pieces, 1), expected, 1e-5)
