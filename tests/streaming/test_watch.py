"""Questions on the way through a video."""

import pytest
from stream_kit import answer, pictures

from infinitevl.errors import InfiniteVLError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.streaming.watch import Asked, Question, Seen, watch
from infinitevl.video.sources import open_video


@pytest.mark.parametrize(
    ("given", "time", "text"),
    [
        ("12.5: what is it?", 12.5, "what is it?"),
        ("0:now", 0.0, "now"),
        ("what is it?", None, "what is it?"),
        ("is it 12:30?", None, "is it 12:30?"),
        ("sign: what does it say?", None, "sign: what does it say?"),
        (" 3 : a:b ", 3.0, "a:b"),
    ],
)
def test_a_question_with_or_without_a_time(given: str, time: float | None, text: str):
    assert Question.parse(given) == Question(text, time)


@pytest.mark.parametrize("given", ["", "  ", "5:", "5: ", "-1: what?", "nan: what?", "inf: what?"])
def test_what_is_no_question(given: str):
    with pytest.raises(InfiniteVLError, match="a question looks like"):
        Question.parse(given)


def test_a_question_sees_the_frames_up_to_its_time(model: Model):
    frames, asked = pictures(6), ["at 1.2", "at 0.5", "end", "at 99"]
    questions = [Question("What?", {"at 1.2": 1.2, "at 0.5": 0.5, "at 99": 99.0}.get(name)) for name in asked]
    stream, events = model.stream(fps=2.0), []
    for event in watch(stream, open_video(frames, fps=2.0), questions, max_new_tokens=8):
        events.append((event.time, "".join(event.pieces) if isinstance(event, Asked) else None))
    seen = [(i / 2, None) for i in range(6)]
    answers = {}
    for count in (2, 3, 6):
        other = model.stream(fps=2.0)
        for frame in frames[:count]:
            other.see(frame)
        answers[count] = answer(other, "What?", 8)
    expected = [
        *seen[:2],
        (0.5, answers[2]),
        seen[2],
        (1.2, answers[3]),
        *seen[3:],
        (99.0, answers[6]),
        (2.5, answers[6]),
    ]
    assert events == expected


def test_answers_may_be_left_unread(model: Model):
    events = list(watch(model.stream(), open_video(pictures(3), fps=2.0), [Question("What?", 0.0)]))
    assert [type(event) for event in events] == [Seen, Asked, Seen, Seen]


def test_a_second_video_goes_on(model: Model):
    stream = model.stream(fps=2.0)
    for _ in range(2):
        list(watch(stream, open_video(pictures(3), fps=2.0)))
    assert (stream.stats.frames, stream.session.last) == (6, 2.5)
