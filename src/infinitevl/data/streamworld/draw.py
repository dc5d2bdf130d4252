"""Pictures of single things: shapes, backgrounds, panels with text, noise. All colours stay within MARGIN.

Lengths are in units of 1/112 of the frame unless they are called pixels, so that a world looks the same at
every size.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from infinitevl.data.streamworld.glyphs import Face, text_mask
from infinitevl.data.streamworld.vocabulary import COLOURS

UNIT = 112
MARGIN = 20  # colours lie in [20, 235]: noise and brightness are added without overflow
NOISE, BRIGHTNESS = 6, 10  # the most they add; together less than the margin
FINE = 8  # shapes are drawn this much larger, then averaged down
PAD, GAP, FRAME = 4, 3, 4  # inside a panel: to the border, between lines; the double border of a card

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, width, height, in units


@dataclass(frozen=True, slots=True)
class Style:
    """How a panel is written: the face, the height of its capitals in units, and two colours."""

    face: Face
    height: int
    ink: Colour
    paper: Colour


@dataclass(frozen=True, slots=True)
class Sprite:
    """A shape ready to copy into a frame: rgb uint8 [h, w, 3] where mask, bool [h, w, 1], says so."""

    rgb: np.ndarray
    mask: np.ndarray


@lru_cache(maxsize=8192)
def sprite(shape: str, colour: str, pixels: int) -> Sprite:
    """A shape about `pixels` wide in a colour, with a dark edge that sets it off from any background."""
    fine = _fine_mask(shape, pixels)
    inner = fine.filter(ImageFilter.BoxBlur(5 * FINE * pixels // 128)).point([0] * 255 + [255])
    area, fill = (np.asarray(mask.resize((pixels, pixels), Image.Resampling.BOX)) for mask in (fine, inner))
    alpha = fill[..., None] / 255.0
    edge = np.maximum(np.array(COLOURS[colour]) * 0.3, MARGIN)
    rgb = alpha * COLOURS[colour] + (1 - alpha) * edge
    return Sprite(rgb.astype(np.uint8), (area >= 128)[..., None])


def _fine_mask(shape: str, pixels: int) -> Image.Image:
    side = pixels * FINE
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [((x + 1) / 2 * (side - 1), (y + 1) / 2 * (side - 1)) for x, y in points]

    match shape:
        case "circle":
            pen.ellipse(at((-0.95, -0.95), (0.95, 0.95)), fill=255)
        case "square":
            pen.rectangle(at((-0.85, -0.85), (0.85, 0.85)), fill=255)
        case "triangle":
            pen.polygon(at((0, -0.95), (1, 0.85), (-1, 0.85)), fill=255)
        case "diamond":
            pen.polygon(at((0, -1), (0.78, 0), (0, 1), (-0.78, 0)), fill=255)
        case "star":
            pen.polygon(at(*_star()), fill=255)
        case "cross":
            pen.rectangle(at((-0.95, -0.34), (0.95, 0.34)), fill=255)
            pen.rectangle(at((-0.34, -0.95), (0.34, 0.95)), fill=255)
        case "heart":
            pen.ellipse(at((-1, -0.85), (0.06, 0.2)), fill=255)
            pen.ellipse(at((-0.06, -0.85), (1, 0.2)), fill=255)
            pen.polygon(at((-0.94, -0.1), (0, -0.4), (0.94, -0.1), (0, 0.95)), fill=255)
        case "moon":
            pen.ellipse(at((-0.95, -0.95), (0.95, 0.95)), fill=255)
            pen.ellipse(at((-0.2, -0.95), (1.4, 0.65)), fill=0)
        case _:
            raise ValueError(f"no shape {shape!r}")
    return mask


def _star() -> list[tuple[float, float]]:
    angles = [(math.pi * k / 5, 1.05 if k % 2 == 0 else 0.45) for k in range(10)]
    return [(radius * math.sin(angle), 0.08 - radius * math.cos(angle)) for angle, radius in angles]


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A calm picture uint8 [size, size, 3] of two greyish colours mixed by one of five textures."""
    dark = 55 + 130 * rng.random()
    first = dark + 26 * (rng.random(3) - 0.5)
    second = np.clip(dark + 60 * (rng.random() - 0.5), 50, 190) + 26 * (rng.random(3) - 0.5)
    mix = _texture(rng, size)[..., None]
    return np.clip(first + (second - first) * mix, MARGIN, 255 - MARGIN).astype(np.uint8)


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Values in [0, 1], float64 [size, size]."""
    kind = rng.integers(5)
    along = (np.arange(size) + 0.5) / size
    a, b, period = rng.random(3)
    slope = (2 * a - 1) * along + (2 * b - 1) * along[:, None]
    if kind == 0:  # a gradient
        return (slope - slope.min()) / max(float(np.ptp(slope)), 1e-9)
    if kind == 1:  # blotches
        coarse = rng.random((8, 8))
        spread = np.maximum(0, 1 - np.abs(along[:, None] * 7 - np.arange(8)))
        return spread @ coarse @ spread.T
    waves = 4 + 10 * period
    if kind == 2:  # stripes
        return np.where((slope * waves) % 1 < 0.5, 0.15, 0.85)
    cell = np.floor(along * waves)
    if kind == 3:  # a chequered floor
        return 0.2 + 0.6 * ((cell + cell[:, None]) % 2)
    ripple = np.abs((along * waves) % 1 - 0.5)
    return 1 - np.minimum(1, 4 * (ripple**2 + ripple[:, None] ** 2))  # dots


def text_size(lines: tuple[str, ...], style: Style) -> tuple[int, int]:
    """Width and height of the written lines, in units."""
    masks = [text_mask(line, style.face, style.height) for line in lines]
    return max(m.shape[1] for m in masks), sum(m.shape[0] + GAP for m in masks) - GAP


def sign_size(lines: tuple[str, ...], style: Style) -> tuple[int, int]:
    width, height = text_size(lines, style)
    return width + 2 * PAD, height + 2 * PAD


def card_size(value: str, style: Style, icon: int) -> tuple[int, int]:
    width, height = text_size((value,), style)
    return icon + PAD + width + 2 * (PAD + FRAME), max(icon, height) + 2 * (PAD + FRAME) - 2


def sign_picture(lines: tuple[str, ...], style: Style, box: Box, size: int) -> np.ndarray:
    """A board with a thin border, uint8 [h, w, 3] in pixels."""
    board = _board(box, style.paper, size)
    scale = size / UNIT
    thin = max(1, round(scale))
    board[:thin] = board[-thin:] = style.ink
    board[:, :thin] = board[:, -thin:] = style.ink
    masks = [text_mask(line, style.face, round(style.height * scale)) for line in lines]
    high = sum(m.shape[0] for m in masks) + round(GAP * scale) * (len(masks) - 1)
    top = (board.shape[0] - high) // 2
    for mask in masks:
        _write(board, mask, style.ink, (board.shape[1] - mask.shape[1]) // 2, top)
        top += mask.shape[0] + round(GAP * scale)
    return board


def card_picture(key: Sprite, value: str, style: Style, box: Box, size: int) -> np.ndarray:
    """A white card in a double frame: the icon of the key on the left, the value right of it."""
    scale = size / UNIT
    board = _board(box, style.ink, size)
    for inset, colour in ((1, style.paper), (2, style.ink), (3, style.paper)):
        cut = round(inset * scale)
        board[cut:-cut, cut:-cut] = colour
    icon = key.rgb.shape[0]
    left, top = round((PAD + FRAME) * scale), (board.shape[0] - icon) // 2
    np.copyto(board[top : top + icon, left : left + icon], key.rgb, where=key.mask)
    mask = text_mask(value, style.face, round(style.height * scale))
    free = board.shape[1] - left - icon - round(FRAME * scale)
    _write(
        board,
        mask,
        style.ink,
        left + icon + (free - mask.shape[1]) // 2,
        (board.shape[0] - mask.shape[0]) // 2,
    )
    return board


def _board(box: Box, colour: Colour, size: int) -> np.ndarray:
    scale = size / UNIT
    return np.full((round(box[3] * scale), round(box[2] * scale), 3), colour, np.uint8)


def _write(board: np.ndarray, mask: np.ndarray, ink: Colour, left: int, top: int) -> None:
    """Inks `mask` into `board` in place, cut at the edges."""
    left, top = max(left, 0), max(top, 0)
    place = board[top : top + mask.shape[0], left : left + mask.shape[1]]
    alpha = mask[: place.shape[0], : place.shape[1], None] / 255.0
    place[:] = (alpha * ink + (1 - alpha) * place).astype(np.uint8)


@lru_cache(maxsize=4)
def noise_pool(pixels: int) -> np.ndarray:
    """Noise for frames of `pixels` values, uint8 [8 * pixels], negative ones modulo 256."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, NOISE + 1, 8 * pixels) + rng.integers(0, NOISE + 1, 8 * pixels) - NOISE
    return noise.astype(np.uint8)
