"""A row of a data file as a Sample, in any of the usual dialects.

The conversation is `messages` or `conversations`, a message {"role", "content"} or {"from", "value"}, its content
text with <image> and <video> marks or OpenAI's list of parts. Media stand in the parts, or in order in `images` and
`videos` (or one in `image`, `video`).
"""

import base64
import io
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image

from infinitevl.data.sample import IMAGE_MARK, VIDEO_MARK, BadSample, Sample
from infinitevl.video.pictures import SUFFIXES as PICTURES
from infinitevl.video.pictures import check_size

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
MARKS = {"image": IMAGE_MARK, "video": VIDEO_MARK}
CLIPS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".flv", ".gif"})
FILES = {"image": PICTURES, "video": CLIPS}


def to_sample(row: Any, name: str, root: Path, fps: float = 2.0, files: Mapping[str, bytes] | None = None) -> Sample:
    """The checked sample of a row. BadSample where it has a fault that can be told without decoding.

    Relative paths are of `root`. `files` lie beside the row (in its tar): they are found by name, and are all taken,
    in order, if the row names none. Pictures in bytes become PIL images, not yet decoded, videos in bytes BytesIO.
    """
    try:
        messages, media = _parse(row, root, files or {})
    except BadSample as error:
        raise BadSample(f"{name}: {error}") from None
    return Sample(messages, media["image"], media["video"], fps, name).check()


def _parse(row: Any, root: Path, files: Mapping[str, bytes]) -> tuple[list[dict[str, str]], dict[str, list[Any]]]:
    if not isinstance(row, dict):
        raise BadSample(f"not an object: {type(row).__name__}")
    inline: dict[str, list[Any]] = {"image": [], "video": []}
    messages = [_message(message, inline) for message in _conversation(row)]
    system = row.get("system")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    named = {kind: _named(row, kind, found, files) for kind, found in inline.items()}
    return messages, {kind: [_medium(kind, item, root, files) for item in items] for kind, items in named.items()}


def _conversation(row: dict[str, Any]) -> list[Any]:
    turns = row.get("messages") or row.get("conversations")
    if isinstance(turns, dict) and all(isinstance(column, list) for column in turns.values()):  # by columns
        turns = [dict(zip(turns, values, strict=False)) for values in zip(*turns.values(), strict=False)]
    if not isinstance(turns, list) or not turns:
        raise BadSample("no conversation")
    return turns


def _message(message: Any, inline: dict[str, list[Any]]) -> dict[str, str]:
    """The message in the standard form; media in its content go to `inline`."""
    if not isinstance(message, dict):
        raise BadSample(f"message is not an object: {type(message).__name__}")
    role = message.get("role") or message.get("from")
    if not isinstance(role, str) or role not in ROLES:
        raise BadSample(f"unknown role: {role!r}")
    content = message.get("content")
    content = message.get("value") if content is None else content
    if isinstance(content, list):
        content = "".join(_part(part, inline) for part in content)
    if not isinstance(content, str):
        raise BadSample(f"content is not text: {type(content).__name__}")
    return {"role": ROLES[role], "content": content}


def _part(part: Any, inline: dict[str, list[Any]]) -> str:
    """The text of one part of a content; a picture or a video is its mark, and None inside it is one of `images`."""
    form = part.get("type") if isinstance(part, dict) else None
    if form == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = form.removesuffix("_url") if isinstance(form, str) else ""
    if kind not in MARKS:
        raise BadSample(f"unknown part of a content: {form!r}")
    item = next((part[key] for key in (form, "url", "path") if part.get(key) is not None), None)
    if item is not None:
        inline[kind].append(item)
    return MARKS[kind]


def _named(row: dict[str, Any], kind: str, inline: list[Any], files: Mapping[str, bytes]) -> list[Any]:
    """The media of a kind: those in the messages, else those beside them, else the files of this kind."""
    listed = row.get(f"{kind}s")
    listed = row.get(kind) if listed is None else listed
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if inline and listed:
        raise BadSample(f"{kind}s both in the messages and beside them")
    return inline or listed or [name for name in files if PurePosixPath(name).suffix.lower() in FILES[kind]]


def _medium(kind: str, item: Any, root: Path, files: Mapping[str, bytes]) -> Any:
    """A medium as Sample wants it. A file must be there, bytes of a picture must begin like one."""
    if isinstance(item, dict):  # OpenAI's {"url"}, Hugging Face's {"bytes", "path"}
        item = next((item[key] for key in ("bytes", "url", "path") if item.get(key)), None)
    if isinstance(item, str):
        item = _referred(kind, item, root, files)
    if isinstance(item, bytes):
        return _picture(item) if kind == "image" else io.BytesIO(item)
    if isinstance(item, (str, np.ndarray, Image.Image)):
        return item
    raise BadSample(f"unusable {kind}: {type(item).__name__}")


def _referred(kind: str, item: str, root: Path, files: Mapping[str, bytes]) -> str | bytes:
    """What a text refers to: bytes beside the row or in the text itself, else the path or the address."""
    for name, content in files.items():
        file = PurePosixPath(name).name
        if item in (name, file, file.partition(".")[2]):
            return content
    if item.startswith("data:"):
        return _data_url(item)
    scheme = item.partition("://")[0] if "://" in item else "file"
    if scheme in ("http", "https"):
        return item
    if scheme != "file":
        raise BadSample(f"unknown kind of address: {item}")
    path = root / (url2pathname(urlsplit(item).path) if "://" in item else item)
    try:
        there = bool(item) and (path.is_file() or (kind == "video" and path.is_dir()))
    except OSError:  # a name too long to be one
        there = False
    if not there:
        raise BadSample(f"missing file: {path}")
    return str(path)


def _data_url(address: str) -> bytes:
    head, _, body = address.partition(",")
    try:
        return base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
    except ValueError as error:
        raise BadSample(f"broken data URL: {error}") from None


def _picture(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_size is the limit
            picture = Image.open(io.BytesIO(content))
        check_size(picture.width, picture.height, "it")
        return picture
    except Exception as error:  # a damaged picture makes Pillow raise nearly anything
        known = isinstance(error, Image.UnidentifiedImageError)
        raise BadSample(f"not a picture: {'unknown format' if known else error}") from None
