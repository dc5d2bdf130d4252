"""Conversations to model inputs, by Qwen2.5-VL's conventions: chat template, image and video tokens, patches."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

from infinitevl import ops
from infinitevl.errors import InfiniteVLError
from infinitevl.model.patches import CLIP_MEAN, CLIP_STD, preprocess
from infinitevl.video.media import load_image, load_video

SETTINGS_FILE = "preprocessor_config.json"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
SLACK = 1e-3  # seconds: video files write times in milliseconds, so that 1/3 s is 0.333
SYSTEM = f"{IM_START}system\nYou are a helpful assistant.{IM_END}\n"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '" + SYSTEM.replace("\n", "\\n") + "' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)  # fmt: skip


@dataclass
class MediaSettings:
    """How pictures and videos are put to the model; `preprocessor_config.json`.

    min_pixels, max_pixels: of a picture after the resize. max_video_seconds: a stream's video that has gone on for so
    long ends, and the next one begins with the next frame (None: it never ends). The later a frame of a video, the
    further its temporal position is from its rows and columns: small models do not know far ones.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    image_mean: Sequence[float] = CLIP_MEAN
    image_std: Sequence[float] = CLIP_STD
    max_video_seconds: float | None = None

    def __post_init__(self) -> None:
        limit = self.max_video_seconds
        if limit is not None and not (type(limit) in (int, float) and limit > SLACK):
            raise InfiniteVLError(f"max_video_seconds={limit!r}: it is a number of seconds, or null")

    @classmethod
    def read(cls, values: dict[str, Any]) -> "MediaSettings":
        """From a checkpoint's file; `size` with shortest_edge and longest_edge is the newer form of the bounds."""
        size = values.get("size") or {}
        given = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
        given |= {name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def ends_video(self, seconds: float) -> bool:
        """Whether a video has ended before a frame that comes so many seconds after its first one."""
        return self.max_video_seconds is not None and seconds >= self.max_video_seconds - SLACK


class InfiniteVLProcessor(ProcessorMixin):
    """Tokenizer, chat template and preprocessing of images and videos in one. Needs no torchvision."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: MediaSettings | None = None):
        self.tokenizer = tokenizer
        self.settings = settings or MediaSettings()
        self.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
        missing = [t for t in (IMAGE, VIDEO, VISION_START, VISION_END, IM_START, IM_END) if self.token_id(t) is None]
        if missing:
            raise InfiniteVLError(f"the tokenizer has no {missing[0]} token: it is not one of Qwen2.5-VL's kind")

    @classmethod
    def from_pretrained(cls, name: str | Path, **_: Any) -> "InfiniteVLProcessor":
        """From a folder or a hub id with tokenizer.json; preprocessor_config.json is optional."""
        if Path(name).is_dir() and not (Path(name) / "tokenizer.json").is_file():
            raise InfiniteVLError(f"{name} has no tokenizer.json (Qwen2.5-VL's tokenizer fits the authors' models)")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(name))
        file = cached_file(str(name), SETTINGS_FILE, _raise_exceptions_for_missing_entries=False)
        values = json.loads(Path(file).read_text()) if file else {}
        return cls(tokenizer, MediaSettings.read(values))

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> list[str]:
        """Write the tokenizer and preprocessor_config.json; returns the paths."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.chat_template = self.chat_template
        paths = list(self.tokenizer.save_pretrained(str(folder)))
        values = {**asdict(self.settings), "processor_class": type(self).__name__}
        (folder / SETTINGS_FILE).write_text(json.dumps(values, indent=2) + "\n")
        return [*paths, str(folder / SETTINGS_FILE)]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({type(self.tokenizer).__name__} of {len(self.tokenizer)} tokens, {self.settings})"
        )

    def token_id(self, token: str) -> int | None:
        """The id of a special token, None where the tokenizer has none."""
        return self.tokenizer.get_vocab().get(token)

    def config_ids(self) -> dict[str, Any]:
        """The fields of InfiniteVLConfig that hold ids of special tokens."""
        return {
            "image_token_id": self.token_id(IMAGE),
            "video_token_id": self.token_id(VIDEO),
            "vision_start_token_id": self.token_id(VISION_START),
            "vision_end_token_id": self.token_id(VISION_END),
            "eos_token_id": self.token_id(IM_END),
            "pad_token_id": self.pad_token_id,
            "bos_token_id": None,
        }

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a piece of text. `special=False`: marks like <|im_end|> in it are plain text."""
        text = text.encode(errors="replace").decode()  # half of a surrogate pair is no text for a tokenizer
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        **options: Any,
    ) -> Any:
        """Messages to text or, with `tokenize`, to ids, or with `return_dict` also to all model inputs.

        A message is {"role", "content"}; content is a string or a list of {"type": "text", "text"},
        {"type": "image", "image" | "path" | "url"} and {"type": "video", "video" | "path" | "url", "fps"}.
        Pictures are paths, addresses, PIL images or uint8 arrays [H, W, 3]; videos are whatever `open_video` opens,
        or uint8 arrays [N, H, W, 3]. Further options are those of `__call__`.
        """
        single = bool(conversation) and isinstance(conversation[0], dict)
        conversations: list[Any] = [conversation] if single else list(conversation)
        template = chat_template or self.chat_template
        texts = [
            self.tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=add_generation_prompt, tokenize=False
            )
            for messages in conversations
        ]
        if not tokenize:
            return texts[0] if single else texts
        images = [part for messages in conversations for part in _parts(messages, "image")]
        videos = [part for messages in conversations for part in _parts(messages, "video")]
        batch = self(text=texts, images=images or None, videos=videos or None, **options)
        return batch if return_dict else batch["input_ids"]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        videos: Any = None,
        *,
        fps: float = 2.0,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        padding: bool | str = True,
        padding_side: str = "left",
        return_tensors: str = "pt",
        **_: Any,
    ) -> BatchFeature:
        """Text with one <|image_pad|> or <|video_pad|> per image or video, to model inputs (PyTorch tensors).

        fps: rate at which videos from files are sampled, and the rate of videos given as arrays.
        Raises InfiniteVLError where the marks and the images or videos do not match in number.
        """
        bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        encoded_images = [self.patches(load_image(image)[None], **bounds) for image in _listed(images)]
        loaded = [load_video(video, fps) for video in _listed(videos)]
        encoded_videos = [self.patches(frames, **bounds) for frames, _ in loaded]
        features = _visual_inputs(encoded_images, encoded_videos)
        if encoded_videos:
            per_grid = self.settings.temporal_patch_size
            features["second_per_grid_ts"] = torch.tensor([per_grid / rate for _, rate in loaded])
        if text is None:
            return BatchFeature(features)
        texts = [text] if isinstance(text, str) else text
        rows = self._expanded([self.encode(t) for t in texts], encoded_images, encoded_videos)
        if not padding and len(rows) > 1 and len({len(row) for row in rows}) > 1:
            raise InfiniteVLError("texts of different lengths need padding=True to become one tensor")
        ids, mask = _padded(rows, self.pad_token_id, padding_side)
        kinds = (ids == self.token_id(IMAGE)).long() + 2 * (ids == self.token_id(VIDEO)).long()
        return BatchFeature({"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds, **features})

    @property
    def pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else self.token_id(IM_END) or 0

    @property
    def model_input_names(self) -> list[str]:
        visual = [
            "pixel_values",
            "image_grid_thw",
            "pixel_values_videos",
            "video_grid_thw",
            "second_per_grid_ts",
        ]
        return ["input_ids", "attention_mask", "mm_token_type_ids", *visual]

    def patches(
        self, frames: Tensor, *, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> tuple[Tensor, tuple[int, int, int]]:
        """uint8 [N, H, W, 3] -> patches [t * h * w, 1176] and the grid (t, h, w), on the frames' device."""
        s = self.settings
        return preprocess(
            frames,
            min_pixels=min_pixels or s.min_pixels,
            max_pixels=max_pixels or s.max_pixels,
            patch_size=s.patch_size,
            merge_size=s.merge_size,
            temporal_patch_size=s.temporal_patch_size,
            mean=s.image_mean,
            std=s.image_std,
        )

    def frame_patches(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 [N, h, w, 3] of a size that the model takes -> patches [N * h * w, 1176], each frame a picture."""
        s = self.settings
        repeated = frames[:, None].expand(-1, s.temporal_patch_size, -1, -1, -1)
        return ops.patches(repeated, s.patch_size, s.merge_size, s.image_mean, s.image_std, dtype)

    def _expanded(self, rows: list[list[int]], images: list[Any], videos: list[Any]) -> list[list[int]]:
        """Repeat each image or video mark once per token that its grid makes."""
        grids = {self.token_id(IMAGE): iter(images), self.token_id(VIDEO): iter(videos)}
        for token, given, kind in ((IMAGE, images, "image"), (VIDEO, videos, "video")):
            marks = sum(row.count(self.token_id(token) or -1) for row in rows)
            if marks != len(given):
                raise InfiniteVLError(f"the text has {marks} {kind} marks for {len(given)} {kind}s")
        cells = self.settings.merge_size**2
        return [
            [
                t
                for token in row
                for t in [token] * (int(np.prod(next(grids[token])[1])) // cells if token in grids else 1)
            ]
            for row in rows
        ]


def _parts(messages: list[dict[str, Any]], kind: str) -> Iterable[dict[str, Any]]:
    for message in messages:
        if not isinstance(message.get("content"), str):
            yield from (part for part in message.get("content") or () if part["type"] in (kind, f"{kind}_url"))


def _listed(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]


def _visual_inputs(images: list[Any], videos: list[Any]) -> dict[str, Tensor]:
    features = {}
    for items, pixels, grid in (
        (images, "pixel_values", "image_grid_thw"),
        (videos, "pixel_values_videos", "video_grid_thw"),
    ):
        if items:
            features[pixels] = torch.cat([patches for patches, _ in items])
            features[grid] = torch.tensor([size for _, size in items])
    return features


def _padded(rows: list[list[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    """Rows of ids to ids and mask [B, T]."""
    longest = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.int64)
    for b, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[b, place], mask[b, place] = torch.tensor(row), 1
    return ids, mask
