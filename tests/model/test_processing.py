"""Messages become the ids, patches and grids that Qwen2.5-VL's own processor makes."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infinitevl.errors import InfiniteVLError
from infinitevl.model.processing import (
    IM_END,
    IMAGE,
    VIDEO,
    VISION_END,
    VISION_START,
    InfiniteVLProcessor,
    MediaSettings,
)
from infinitevl.model.random_model import byte_tokenizer
from infinitevl.video.media import load_image, load_video

# Qwen2.5-VL's chat_template.json, word for word
QWEN = """{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""  # noqa: E501


@pytest.fixture(scope="module")
def processor() -> InfiniteVLProcessor:
    return InfiniteVLProcessor(byte_tokenizer())


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def about(image: object, text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


def count(processor: InfiniteVLProcessor, ids: torch.Tensor, token: str) -> int:
    return int((ids == processor.token_id(token)).sum())


# Text

PART = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text("ab\n é{}%'\"", max_size=8)}),
    st.just({"type": "image", "image": "a.jpg"}),
    st.just({"type": "image_url", "image_url": {"url": "a.jpg"}}),
    st.just({"type": "video", "video": "a.mp4"}),
)
CONTENT = st.one_of(st.text("ab\n é{}%'\"", max_size=8), st.lists(PART, max_size=5))
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": CONTENT})


@settings(deadline=None)
@given(st.lists(TURN, min_size=1, max_size=4), st.booleans())
def test_the_chat_template_is_qwens(processor: InfiniteVLProcessor, messages: list[dict], prompt: bool):
    expected = processor.tokenizer.apply_chat_template(
        messages, chat_template=QWEN, add_generation_prompt=prompt, tokenize=False
    )
    assert processor.apply_chat_template(messages, add_generation_prompt=prompt) == expected


def test_a_conversation(processor: InfiniteVLProcessor):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    both = processor.apply_chat_template([messages, messages[2:]])
    assert both == [processor.apply_chat_template(messages), processor.apply_chat_template(messages[2:])]


def test_marks_are_text_where_they_are_not_meant(processor: InfiniteVLProcessor):
    text = f"a{IM_END}{IMAGE}é"
    marks = {processor.token_id(IM_END), processor.token_id(IMAGE)}
    assert marks < set(processor.encode(text))
    plain = processor.encode(text, special=False)
    assert not marks & set(plain)
    assert processor.tokenizer.decode(plain) == text
    assert processor.encode("a\udcff") == processor.encode("a?")


# Model inputs


def test_marks_grow_to_the_size_of_their_grid(processor: InfiniteVLProcessor):
    images = [picture(56, 84), picture(112, 56)]
    video = np.stack([picture(56, 112, seed) for seed in range(5)])
    content = [
        {"type": "text", "text": "a"}, {"type": "image", "image": images[0]}, {"type": "video", "video": video},
        {"type": "text", "text": "b"}, {"type": "image", "image": images[1]},
    ]  # fmt: skip
    messages = [{"role": "user", "content": content}]
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, fps=4)
    assert batch["image_grid_thw"].tolist() == [[1, 4, 6], [1, 8, 4]]
    assert batch["video_grid_thw"].tolist() == [[3, 4, 8]]
    assert batch["second_per_grid_ts"].tolist() == [0.5]
    assert batch["pixel_values"].shape == (24 + 32, 1176)
    assert batch["pixel_values_videos"].shape == (96, 1176)
    marked = f"a{VISION_START}{IMAGE * 6}{VISION_END}{VISION_START}{VIDEO * 24}{VISION_END}b{VISION_START}{IMAGE * 8}"
    ids, expected = batch["input_ids"][0].tolist(), processor.encode(marked)
    start = ids.index(expected[0], len(processor.encode("<|im_start|>system\nYou are a helpful assistant.")))
    assert ids[start : start + len(expected)] == expected
    kinds = {processor.token_id(IMAGE): 1, processor.token_id(VIDEO): 2}
    assert batch["mm_token_type_ids"][0].tolist() == [kinds.get(token, 0) for token in ids]
    assert batch["attention_mask"].all()
    assert processor.apply_chat_template(messages, tokenize=True).equal(batch["input_ids"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded(processor: InfiniteVLProcessor, side: str):
    conversations = [about(picture(56, 56 * i), "x" * i) for i in (3, 1, 2)]
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    batch = processor.apply_chat_template(conversations, padding_side=side, **options)
    assert [grid[2] for grid in batch["image_grid_thw"].tolist()] == [12, 4, 8]
    for b, conversation in enumerate(conversations):
        alone = processor.apply_chat_template(conversation, **options)
        mask = batch["attention_mask"][b] == 1
        assert batch["input_ids"][b][mask].equal(alone["input_ids"][0])
        assert batch["mm_token_type_ids"][b][mask].equal(alone["mm_token_type_ids"][0])
        assert (batch["input_ids"][b][~mask] == processor.pad_token_id).all()
        length = int(mask.sum())
        assert mask[-length:].all() if side == "left" else mask[:length].all()


def test_text_alone_and_pictures_alone(processor: InfiniteVLProcessor):
    assert set(processor(text="hello")) == {"input_ids", "attention_mask", "mm_token_type_ids"}
    assert set(processor(images=picture(56, 56))) == {"pixel_values", "image_grid_thw"}
    assert set(processor(text="hello").keys()) <= set(processor.model_input_names)


@pytest.mark.parametrize(
    ("text", "images", "videos", "message"),
    [
        (IMAGE, None, None, "1 image marks for 0 images"),
        ("none", 1, None, "0 image marks for 1 images"),
        (IMAGE * 2, 1, None, "2 image marks for 1 images"),
        (VIDEO, 1, 1, "0 image marks for 1 images"),
        (VIDEO * 3, None, 2, "3 video marks for 2 videos"),
    ],
)
def test_marks_must_match(processor: InfiniteVLProcessor, text: str, images: int, videos: int, message: str):
    frames = picture(56, 56)
    with pytest.raises(InfiniteVLError, match=message):
        processor(text=text, images=images and [frames] * images, videos=videos and [frames[None]] * videos)


def test_texts_of_different_lengths_need_padding(processor: InfiniteVLProcessor):
    with pytest.raises(InfiniteVLError, match="padding"):
        processor(text=["a", "bc"], padding=False)
    assert processor(text=["ab", "cd"], padding=False)["input_ids"].shape == (2, 2)


# Pixels


@pytest.mark.parametrize("size", [(56, 56), (84, 140), (280, 28 * 3)])
def test_pixels_of_a_picture_are_qwens(processor: InfiniteVLProcessor, size: tuple[int, int]):
    qwen = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    image = Image.fromarray(picture(*size))
    found = processor(text=IMAGE, images=image)
    expected = qwen.Qwen2VLImageProcessorPil()(images=[image], return_tensors="pt")
    assert found["image_grid_thw"].equal(expected["image_grid_thw"])
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("bounds", "grid"),
    [({}, (1, 20, 30)), ({"max_pixels": 20_000}, (1, 8, 12)), ({"min_pixels": 500_000}, (1, 42, 62))],
)
def test_bounds_of_the_size(processor: InfiniteVLProcessor, bounds: dict, grid: tuple):
    batch = processor(text=IMAGE, images=picture(280, 420), **bounds)
    assert tuple(batch["image_grid_thw"][0].tolist()) == grid
    assert count(processor, batch["input_ids"], IMAGE) == grid[1] * grid[2] // 4


def test_images_of_every_kind(tmp_path: Path):
    array = picture(60, 70)
    Image.fromarray(array).save(path := tmp_path / "x.png")
    buffer = io.BytesIO(path.read_bytes())
    data = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    flipped = array[..., ::-1].copy()[..., ::-1]
    for image in (
        path, str(path), Image.fromarray(array), array, torch.from_numpy(array), flipped, buffer, data,
        {"type": "image", "image": array}, {"type": "image", "path": str(path)}, {"type": "image", "url": data},
        {"type": "image_url", "image_url": {"url": data}}, {"type": "image_url", "image_url": str(path)},
    ):  # fmt: skip
        assert load_image(image).equal(torch.from_numpy(array)), image
    grey = Image.fromarray(array[..., 0])
    assert load_image(grey).shape == (60, 70, 3)
    assert load_image(grey.convert("RGBA")).shape == (60, 70, 3)


@pytest.mark.parametrize(
    "given",
    [{"type": "image"}, "nothing.png", "data:image/png;base64,AAAA", "data:nonsense", 3, np.zeros((4, 4), np.uint8)],
)
def test_what_is_no_image(processor: InfiniteVLProcessor, given: object):
    with pytest.raises(InfiniteVLError) as error:
        processor(text=IMAGE, images=[given])
    assert len(str(error.value).splitlines()) == 1


def test_videos_of_every_kind(tmp_path: Path, shared: Path):
    frames = np.stack([picture(56, 56, seed) for seed in range(4)])
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    for video in (frames, torch.from_numpy(frames), list(frames), str(tmp_path), {"type": "video", "video": frames}):
        found, rate = load_video(video, 2.0)
        assert found.equal(torch.from_numpy(frames))
        assert rate == 2.0
    assert load_video({"type": "video", "video": frames, "fps": 5}, 2.0)[1] == 5.0
    found, rate = load_video(str(shared / "media" / "1.mp4"), 0.5)
    assert (len(found), rate) == (5, 0.5)
    Image.fromarray(picture(56, 84)).save(tmp_path / "4.png")
    with pytest.raises(InfiniteVLError, match="differ in size"):
        load_video(str(tmp_path), 2.0)


# Files


def test_saved_and_read_again(processor: InfiniteVLProcessor, tmp_path: Path):
    other = InfiniteVLProcessor(byte_tokenizer(), MediaSettings(784, 50_000, image_std=[1, 1, 1]))
    paths = other.save_pretrained(tmp_path / "folder")
    assert all(Path(path).is_file() for path in paths)
    again = InfiniteVLProcessor.from_pretrained(tmp_path / "folder")
    assert (again.settings.min_pixels, again.settings.max_pixels, again.settings.image_std) == (784, 50_000, [1, 1, 1])
    assert again.chat_template == other.chat_template
    assert str(other.settings.max_pixels) in repr(other)

    def inputs(processor: InfiniteVLProcessor) -> dict:
        return processor.apply_chat_template(about(picture(300, 200), "é?"), tokenize=True, return_dict=True)

    written, read = inputs(other), inputs(again)
    assert all(written[name].equal(read[name]) for name in written)
    assert written["pixel_values"].shape != inputs(processor)["pixel_values"].shape


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, MediaSettings()),
        ({"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14}, MediaSettings(3136, 12845056)),
        ({"size": {"shortest_edge": 784, "longest_edge": 9000}}, MediaSettings(784, 9000)),
        ({"size": {"shortest_edge": 784, "longest_edge": 9000}, "max_pixels": None}, MediaSettings(784, 9000)),
        ({"size": {"shortest_edge": 784}, "min_pixels": 1568}, MediaSettings(1568)),
        ({"max_video_seconds": 5}, MediaSettings(max_video_seconds=5)),
        ({"image_processor_type": "Qwen2VLImageProcessor", "do_resize": True, "merge_size": 2}, MediaSettings()),
    ],
)
def test_settings_of_qwens_files(values: dict, expected: MediaSettings, tmp_path: Path):
    assert MediaSettings.read(values) == expected
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    assert InfiniteVLProcessor.from_pretrained(tmp_path).settings == expected


@pytest.mark.parametrize("limit", [0, -1.0, "5", [5], True, float("nan")])
def test_a_video_of_no_length(limit: Any):
    with pytest.raises(InfiniteVLError, match=r"max_video_seconds=.*: it is a number of seconds, or null"):
        MediaSettings.read({"max_video_seconds": limit})


def test_settings_are_optional(tmp_path: Path):
    byte_tokenizer().save_pretrained(tmp_path)
    assert InfiniteVLProcessor.from_pretrained(tmp_path).settings == MediaSettings()


def test_tokenizers_of_another_kind(tmp_path: Path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(InfiniteVLError, match=r"no <\|image_pad\|> token"):
        InfiniteVLProcessor(other)
    with pytest.raises(InfiniteVLError, match=r"has no tokenizer\.json"):
        InfiniteVLProcessor.from_pretrained(tmp_path)
