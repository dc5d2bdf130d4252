"""A teacher is a Qwen2.5-VL: transformers' own class computes the same, and `convert` reads it."""

from pathlib import Path

import pytest
import torch
from train_kit import HYBRID, mixed_batch, small_model, small_teacher

import infinitevl
from helpers import assert_close
from infinitevl.model.convert import convert
from infinitevl.train.qwen import as_qwen
from infinitevl.train.stages import embed


@pytest.fixture(scope="module")
def teacher():
    return small_model(["full_attention"] * 3, num_attention_heads=4, num_key_value_heads=2)


@torch.no_grad()
def test_the_same_logits(teacher):
    """Text alone, at its own positions; text and frames, at the positions of this project's rule."""
    qwen = as_qwen(teacher)
    ids = torch.randint(200, (2, 40))
    assert_close(qwen(input_ids=ids).logits, teacher(ids).logits, 1e-5)

    batch = mixed_batch(teacher)
    batch.seq_idx[:] = 0  # transformers would need a mask to keep samples apart: as one sequence
    length = int(batch.lengths[1])
    inputs = embed(teacher, batch)
    expected = teacher.lm_head(inputs.decode(teacher.model.language_model))[1, :length]
    frames = batch.frames[-2:]
    patches, grids = zip(
        *(teacher.processor.patches(f.repeat_interleave(2, dim=0), min_pixels=784) for f in frames), strict=True
    )
    found = qwen(
        input_ids=batch.ids[1:, :length], position_ids=batch.positions[:, 1:, :length],
        pixel_values_videos=torch.cat(patches), video_grid_thw=torch.tensor(grids),
    )  # fmt: skip
    assert_close(found.logits[0], expected, 1e-5)


def test_convert_takes_it(teacher, tmp_path: Path):
    as_qwen(teacher).save_pretrained(tmp_path / "qwen")
    teacher.processor.save_pretrained(tmp_path / "qwen")
    convert(tmp_path / "qwen", tmp_path / "student", sliding_window=16)
    student = infinitevl.load(tmp_path / "student")
    assert student.config.text_config.layer_types == ["sliding_attention", *["linear_attention"] * 2]
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id")
    assert all(getattr(student.config, name) == getattr(teacher.config, name) for name in ids)
    theirs, ours = teacher.state_dict(), student.state_dict()
    shared = [name for name in ours if ".self_attn." not in name or ".layers.0." in name or "visual" in name]
    assert len(shared) > 50
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)


def test_other_models_are_none(teacher):
    with pytest.raises(ValueError, match="full attention"):
        as_qwen(small_model(HYBRID))
    with pytest.raises(ValueError, match="hidden size"):
        as_qwen(small_teacher())
