"""Contact sheets: questions of every kind with the frames they are about, for people to look at."""

from itertools import count

from PIL import Image, ImageDraw, ImageFont

from infinitevl.data.streamworld.draw import UNIT
from infinitevl.data.streamworld.episodes import Episode, sample
from infinitevl.data.streamworld.perception import GLANCE, RECENT
from infinitevl.data.streamworld.questions import KINDS, Question
from infinitevl.data.streamworld.vocabulary import Split

GAP, LINE = 8, 19  # pixels between cells, and of a line of words below each
MOST_EPISODES = 400


def contact_sheet(
    seed: int = 0,
    split: Split = "train",
    *,
    per_kind: int = 1,
    groups: tuple[str, ...] = tuple(KINDS),
    zoom: int = 2,
    columns: int = 4,
    size: int = UNIT,
    frames: int = 64,
) -> Image.Image:
    """A picture with `per_kind` questions of each kind, from the first episodes that have them.

    Beside each question stand the frame with its evidence (for movements an earlier one) and the frame at
    which it is asked; below them the question, the answer and the age.
    """
    cells = [_cell(*found, zoom) for found in _find(seed, split, groups, per_kind, size, frames)]
    wide, high = (max(cell.size[axis] for cell in cells) for axis in (0, 1))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (wide + GAP) + GAP, rows * (high + GAP) + GAP), "white")
    for i, cell in enumerate(cells):
        sheet.paste(cell, (GAP + i % columns * (wide + GAP), GAP + i // columns * (high + GAP)))
    return sheet


def _find(
    seed: int, split: Split, groups: tuple[str, ...], per_kind: int, size: int, frames: int
) -> list[tuple[Episode, Question]]:
    """The first questions of each kind, in the order of the kinds."""
    found: dict[tuple[str, str], list[tuple[Episode, Question]]] = {
        (group, kind): [] for group in groups for kind in KINDS[group]
    }
    for number in count(seed):
        if all(len(some) >= per_kind for some in found.values()) or number == seed + MOST_EPISODES:
            break
        episode = sample(number, split, frames=frames, questions=2 * len(groups), groups=groups, size=size)
        for question in episode.questions:
            some = found[question.group, question.kind]
            if len(some) < per_kind and all(episode.seed != other.seed for other, _ in some):
                some.append((episode, question))
    return [pair for some in found.values() for pair in some]


def _cell(episode: Episode, question: Question, zoom: int) -> Image.Image:
    """Two frames side by side, or one that has all the evidence, over three lines of words."""
    earlier = max(0, question.frame - _back(question))
    side = zoom * episode.frames.shape[1]
    cell = Image.new("RGB", (2 * side + GAP // 2, side + 3 * LINE + 3), "white")
    for place, index in enumerate(sorted({earlier, question.frame})):
        picture = Image.fromarray(episode.frames[index]).resize((side, side), Image.Resampling.NEAREST)
        cell.paste(picture, (place * (side + GAP // 2), 0))
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(size=12)
    held_out = ", held out" if question.held_out else ""
    about = f"{question.kind}, frame {question.frame}, age {question.age}{held_out}"
    lines = (question.question, "black"), (question.answer, "red"), (about, "grey")
    for number, (text, colour) in enumerate(lines):
        pen.text((2, side + 3 + number * LINE), _cut(text, cell.width - 4, font), colour, font)
    return cell


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of it as fits."""
    whole = text
    while font.getlength(text) > width:
        text = f"{whole[: len(text) - 2]}…"
    return text


def _back(question: Question) -> int:
    """How many frames earlier the evidence shows best."""
    if question.kind in ("left", "entered"):
        return question.age + RECENT
    return GLANCE if question.group == "move" else question.age
