"""`infinitevl demo`: the film, what is shown of it, the figure, and a video of one's own."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infinitevl.commands import demo
from infinitevl.commands.board import Answered, count
from infinitevl.commands.figure import by_age
from infinitevl.commands.film import CARD_SECONDS, CARDS, FPS, REPEATED, Film, make_film
from infinitevl.data.streamworld import Question
from infinitevl.streaming.stream import Stream
from infinitevl.video.sources import open_video

Run = Callable[..., Any]
WINDOW_FRAMES = 4  # of the checkpoint of these tests


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    return make_film(tmp_path_factory.mktemp("film") / "film.mp4", 3, 40)


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The model answers "hood". What it was asked, and how many frames it had seen."""
    asked = []

    def ask(stream: Stream, question: str, **options: Any) -> Any:
        asked.append((question, stream.stats.frames))
        return iter(["ho", "od\n\x07"])

    monkeypatch.setattr(Stream, "ask", ask)
    return asked


def of_age(windows: float, answer: str = "yes") -> Answered:
    question = Question("recall", "card", "?", "yes", 1, 0.1, round(16 * windows), 0, 0, 0, 0.5, False)
    return Answered(question, answer, windows)


def test_the_film_is_a_video_that_ends_long_after_its_cards(film: Film):
    with open_video(film.path) as video:
        times = [time for time, _ in video]
    assert times == pytest.approx([i / FPS for i in range(400)])
    assert film.cards == CARDS
    on_cards = [question for question in film.questions if question.kind in ("card", "first_card", "last_card")]
    assert all(question.frame - question.age < CARD_SECONDS * FPS for question in on_cards)
    assert len({question.answer for question in on_cards}) <= CARDS
    old = [question for question in film.questions if question.age > 16 * 16]
    assert len(old) >= 10 and {question.group for question in old} == {"recall"}
    now = [question for question in film.questions if question.age < 16]
    assert len(now) >= 30 and {"read", "see"} <= {question.group for question in now}
    for before, after in combinations(film.questions, 2):
        same = (before.kind, before.answer) == (after.kind, after.answer)
        assert not same or after.time - before.time >= REPEATED
    assert [q.frame for q in film.questions] == sorted(q.frame for q in film.questions)


def test_seeds_make_films(tmp_path: Path):
    one, again, other = (make_film(tmp_path / f"{seed}.mp4", seed, 4).questions for seed in (3, 3, 4))
    assert one == again != other


def test_answers_by_age():
    answers = [of_age(0), of_age(0.9, "no"), of_age(1), of_age(1.5, " Yes"), of_age(100, "no")]
    assert [answer.long_ago for answer in answers] == [False, False, True, True, True]
    found = [(low, high, score.right, score.asked) for low, high, score in by_age(answers)]
    assert found == [(0, 0.25, 1, 1), (0.25, 1, 0, 1), (1, 4, 2, 2), (32, float("inf"), 0, 1)]
    assert (count(answers).right, count(answers).chance) == (3, 0.5)


def test_demo(run: Run, tmp_path: Path, knowing: list[tuple[str, int]]):
    """Every question is asked right after its frame, and marked; the score and the memory are told."""
    done = run("demo", "--seconds", "12", "--seed", "3")
    assert (done.code, done.err) == (0, [])
    film = make_film(tmp_path / "again.mp4", 3, 12)
    assert knowing == [(question.question, question.frame + 1) for question in film.questions]
    marked = [line for line in done.out if line[:1] in "✓✗" and line]
    for line, question in zip(marked, film.questions, strict=True):
        right = question.answer == "hood"
        assert question.question in line and "hood" in line and "\x07" not in line
        assert (line[0] == "✓") == right == (f"(truth: {question.answer})" not in line)
        windows = question.age / WINDOW_FRAMES
        assert ("now" if question.age == 0 else f"{question.age / FPS:.1f} s, {windows:.1f} windows ago") in line
    text = "\n".join(done.out)
    assert f"holds {WINDOW_FRAMES} frames (0.4 s)" in text
    for ago in (False, True):
        answers = [question.answer for question in film.questions if (question.age >= WINDOW_FRAMES) == ago]
        assert f"{answers.count('hood')} of {len(answers)} (" in text
    assert any(line[0] == "✓" for line in marked)
    assert "120 frames, " in text and text.count("292.0 KiB after the") == 2
    with Image.open("demo/stream.png") as figure:
        assert figure.size == (1080, 1080)


def test_a_video_of_ones_own(run: Run, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "ANSWER_TOKENS", 3)
    done = run("demo", media / "2.avi", "--out", tmp_path / "out", "--fps", "2")
    assert (done.code, done.err) == (0, [])
    text = "\n".join(done.out)
    assert all(question in text for question in demo.QUESTIONS)
    assert "18 frames" in text and "✗" not in text and "StreamWorld" not in text
    with Image.open(tmp_path / "out" / "stream.png") as figure:
        assert figure.size == (1080, 720)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.mp4"], "missing.mp4: no such file"),
        (["text"], "text: not a video that can be read"),
        (["--out", "text"], "cannot use text as a folder"),
        (["--out", "/proc/demo"], "cannot use /proc/demo as a folder"),
        (["--seconds", "3"], "3 is not in the range"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--seed", "x"], "'x' is not a valid integer"),
        (["VIDEO", "--fps", "0"], "fps must be a positive number"),
        (["VIDEO", "--fps", "nan"], "fps must be a positive number"),
        (["--model", "nothing"], "no such checkpoint folder: nothing"),
        (["--device", "toaster"], "cannot use the device 'toaster'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(run: Run, media: Path, tmp_path: Path, args: list[str], message: str):
    (tmp_path / "text").write_text("no video\n" * 100)
    done = run("demo", *(str(media / "2.avi") if arg == "VIDEO" else arg for arg in args))
    assert (done.code, done.out, len(done.err)) == (2, [], 1), done
    assert message in done.err[0]


def test_without_matplotlib(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    done = run("demo")
    assert (done.code, done.out) == (2, []) and "infinitevl[eval]" in done.err[0]
