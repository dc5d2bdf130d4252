"""Patches against Qwen's own image processor and against plain loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as qwen_resize

from infinitevl.errors import InfiniteVLError
from infinitevl.model.patches import CLIP_MEAN, CLIP_STD, preprocess
from infinitevl.video.resize import _across_then_down, _across_then_down_float, smart_resize

BOUNDS = {"min_pixels": 56 * 56, "max_pixels": 448 * 448}
GREY_LEVEL = 1 / 255 / min(CLIP_STD)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def by_qwen(picture: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    processor = Qwen2VLImageProcessorPil(**BOUNDS)
    made = processor(Image.fromarray(picture.numpy()), return_tensors="pt")
    return made["pixel_values"], tuple(made["image_grid_thw"][0].tolist())


def naive(frames: Tensor, patch: int = 14, merge: int = 2, temporal: int = 2) -> Tensor:
    """Patches of frames that need no resize, by plain loops."""
    frames = torch.cat([frames, frames[-1:].expand(-len(frames) % temporal, -1, -1, -1)])
    values = (frames.double() / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    n, height, width, _ = frames.shape
    rows = []
    for t in range(0, n, temporal):
        for block_y in range(0, height, merge * patch):
            for block_x in range(0, width, merge * patch):
                for y in range(block_y, block_y + merge * patch, patch):
                    for x in range(block_x, block_x + merge * patch, patch):
                        cube = values[t : t + temporal, y : y + patch, x : x + patch]
                        rows.append(cube.permute(3, 0, 1, 2).flatten())
    return torch.stack(rows).float()


@pytest.mark.parametrize("bounds", [(56 * 56, 28 * 28 * 1280), (256 * 28 * 28, 512 * 28 * 28), (1, 28 * 28)])
def test_smart_resize_is_qwens(bounds: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for height, width in random.integers(1, 3000, (2000, 2)).tolist():
        if max(height, width) / min(height, width) <= 200:
            size = smart_resize(height, width, min_pixels=bounds[0], max_pixels=bounds[1])
            assert size == qwen_resize(height, width, 28, *bounds)


def test_smart_resize_keeps_the_bounds_and_the_shape() -> None:
    for height, width in [(360, 640), (1080, 1920), (2160, 3840), (28, 28), (100, 31), (1920, 1080)]:
        rows, columns = smart_resize(height, width, **BOUNDS)
        assert rows % 28 == columns % 28 == 0
        assert BOUNDS["min_pixels"] <= rows * columns <= BOUNDS["max_pixels"]
        assert abs(math.log(rows / columns) - math.log(height / width)) < 0.6


def test_a_ribbon_is_refused_in_one_line() -> None:
    assert smart_resize(10, 2000, **BOUNDS)
    with pytest.raises(InfiniteVLError, match=r"^a picture of 2001x10 is more than 200 times longer than wide$"):
        smart_resize(10, 2001, **BOUNDS)


@pytest.mark.parametrize("size", [(56, 56), (336, 560), (448, 448), (84, 28)])
def test_a_picture_that_fits_equals_qwens_exactly(size: tuple[int, int]) -> None:
    picture = noise(*size, 3)
    patches, grid = preprocess(picture[None], min_pixels=28 * 28, max_pixels=448 * 448)
    if size[0] * size[1] >= BOUNDS["min_pixels"]:
        expected, expected_grid = by_qwen(picture)
        assert grid == expected_grid
        torch.testing.assert_close(patches, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(patches, naive(picture[None]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(361, 641), (57, 1000), (1080, 1920), (33, 35), (720, 405)])
def test_a_resized_picture_equals_qwens_within_two_grey_levels(size: tuple[int, int]) -> None:
    picture = noise(*size, 3)
    patches, grid = preprocess(picture[None], **BOUNDS)
    expected, expected_grid = by_qwen(picture)
    assert grid == expected_grid and patches.shape == expected.shape
    difference = (patches - expected).abs()
    assert difference.max() < 2.01 * GREY_LEVEL and difference.mean() < 0.02 * GREY_LEVEL


@pytest.mark.parametrize("name", ["1.jpg", "2.jpg", "3.jpg"])
def test_the_shared_pictures_equal_qwens(media: Path, name: str) -> None:
    picture = torch.from_numpy(np.array(Image.open(media / name).convert("RGB")))
    patches, grid = preprocess(picture[None], **BOUNDS)
    expected, expected_grid = by_qwen(picture)
    assert grid == expected_grid
    difference = (patches - expected).abs()
    assert difference.max() < 2.01 * GREY_LEVEL and difference.mean() < 0.02 * GREY_LEVEL


@pytest.mark.parametrize(("size", "to"), [((360, 640), (336, 588)), ((33, 57), (84, 140)), ((200, 84), (56, 84))])
def test_the_resize_of_other_devices_is_the_cpus(size: tuple[int, int], to: tuple[int, int]) -> None:
    frames = noise(2, 3, *size)
    difference = (_across_then_down_float(frames, to).int() - _across_then_down(frames, to).int()).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.01


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_a_video_equals_the_plain_loops(count: int) -> None:
    frames = noise(count, 84, 140, 3)
    patches, grid = preprocess(frames, **BOUNDS)
    assert grid == ((count + 1) // 2, 6, 10)
    torch.testing.assert_close(patches, naive(frames), atol=1e-6, rtol=0)


def test_other_geometry() -> None:
    frames = noise(4, 64, 96, 3)
    options = {"patch_size": 16, "merge_size": 1, "temporal_patch_size": 4}
    patches, grid = preprocess(frames, min_pixels=1, max_pixels=10**6, **options)
    assert grid == (1, 4, 6)
    torch.testing.assert_close(patches, naive(frames, 16, 1, 4), atol=1e-6, rtol=0)


def test_the_frames_are_not_changed_and_the_dtype_is_as_asked() -> None:
    frames = noise(2, 84, 140, 3)
    before = frames.clone()
    patches, _ = preprocess(frames, dtype=torch.bfloat16, **BOUNDS)
    assert patches.dtype == torch.bfloat16 and torch.equal(frames, before)
    assert torch.equal(patches, preprocess(frames, **BOUNDS)[0].bfloat16())


@pytest.mark.parametrize(
    "bad", [torch.zeros(1, 56, 56, 3), noise(56, 56, 3), noise(1, 3, 56, 56), noise(0, 56, 56, 3)]
)
def test_what_is_no_frame_is_told(bad: Tensor) -> None:
    with pytest.raises(InfiniteVLError, match=r"not uint8 \[N, H, W, 3\]$"):
        preprocess(bad, **BOUNDS)
