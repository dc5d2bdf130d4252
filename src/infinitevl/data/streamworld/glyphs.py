"""Capitals and digits in five faces, with no font file: our own 5x7 dots, and the face inside Pillow."""

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Face = Literal["dots", "heavy dots", "plain", "bold", "slanted"]
FACES: tuple[Face, ...] = get_args(Face)
CAPITAL = 0.71  # height of a capital of Pillow's face, for its size

# For each sign five columns of seven dots, the lowest bit on top.
COLUMNS = {
    "0": "3E5149453E", "1": "00427F4000", "2": "4261514946", "3": "2141454B31", "4": "1814127F10",
    "5": "2745454539", "6": "3C4A494930", "7": "0171090503", "8": "3649494936", "9": "064949291E",
    "A": "7E1111117E", "B": "7F49494936", "C": "3E41414122", "D": "7F4141221C", "E": "7F49494941",
    "F": "7F09090901", "G": "3E4149497A", "H": "7F0808087F", "I": "00417F4100", "J": "2040413F01",
    "K": "7F08142241", "L": "7F40404040", "M": "7F020C027F", "N": "7F0408107F", "O": "3E4141413E",
    "P": "7F09090906", "Q": "3E4151215E", "R": "7F09192946", "S": "4649494931", "T": "01017F0101",
    "U": "3F4040403F", "V": "1F2040201F", "W": "3F4038403F", "X": "6314081463", "Y": "0708700807",
    "Z": "6151494543",
}  # fmt: skip


@lru_cache(maxsize=16384)  # every word in every face and height, and many numbers
def text_mask(text: str, face: Face, height: int) -> np.ndarray:
    """Where the ink is, uint8 [h, w], for `text` in capitals about `height` pixels high, cut to the ink."""
    if face in ("dots", "heavy dots"):
        mask = _dots(text.upper(), height, heavy=face == "heavy dots")
    else:
        mask = _drawn(text.upper(), face, height)
    mask.flags.writeable = False  # it is shared by all who ask
    return mask


def _dots(text: str, height: int, heavy: bool) -> np.ndarray:
    pitch = 6 + heavy
    dots = np.zeros((7, pitch * len(text) - 1), bool)
    for i, sign in enumerate(text):
        columns = np.frombuffer(bytes.fromhex(COLUMNS[sign]), np.uint8)
        dots[:, pitch * i : pitch * i + 5] = (columns >> np.arange(7)[:, None]) & 1
    fine = np.kron(dots, np.ones((8, 8), bool))
    if heavy:
        fine[:, 3:] |= fine[:, :-3]
    width = round(height * fine.shape[1] / fine.shape[0])
    picture = Image.fromarray(fine.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    return np.array(picture)


def _drawn(text: str, face: Face, height: int) -> np.ndarray:
    font = _font(round(height / CAPITAL))
    stroke = 0.4 if face == "bold" else 0.2
    wide, high = (2 + len(text)) * 2 * height, 3 * height
    picture = Image.new("L", (wide, high))
    ImageDraw.Draw(picture).text((height, height), text, 255, font, stroke_width=stroke)
    if face == "slanted":
        lean = (1, 0.25, -0.25 * height, 0, 1, 0)
        picture = picture.transform(picture.size, Image.Transform.AFFINE, lean, Image.Resampling.BILINEAR)
    return np.array(picture.crop(picture.getbbox()))


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
