"""A stream is the prompt it stands for, whatever happens on the way, and its memory never grows."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stream_kit import (
    ASSISTANT,
    USER,
    WINDOW,
    Prompt,
    answer,
    decoded,
    greedy,
    offline_ids,
    picture,
    pictures,
    remembered,
    same_memory,
    video_inputs,
)  # fmt: skip
from torch import Tensor

from helpers import RELATIVE, assert_close, randomise
from infinitevl.errors import InfiniteVLError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.processing import IM_END, IMAGE, SYSTEM, VISION_END, VISION_START, MediaSettings
from infinitevl.model.random_model import random_model
from infinitevl.streaming.session import MAX_PIXELS
from infinitevl.streaming.stream import Stream

QUESTION = "What is on the sign, é or €?"
CLOSE = RELATIVE[torch.float32]


def watched(model: Model, count: int = 5, **options) -> Stream:
    stream = model.stream(**options)
    for frame in pictures(count):
        assert stream.see(frame)
    return stream


@torch.no_grad()
def next_logits(stream: Stream, question: str) -> Tensor:
    """Of the token after a question about an open video, on a copy of the state."""
    ids = stream.model.processor.encode(f"{VISION_END}{question}{ASSISTANT}")
    return stream.model(torch.tensor([ids]), past_key_values=stream.state.fork()).logits[0, -1]


# The prompt that a stream stands for


@pytest.mark.parametrize("fps", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("count", [1, 20])
def test_a_stream_is_the_offline_prompt(model: Model, fps: float, count: int):
    stream, ids = watched(model, count, fps=fps), offline_ids(model, pictures(count), QUESTION)
    inputs = {"input_ids": ids, **video_inputs(model, pictures(count), fps)}
    with torch.no_grad():
        whole = model(**inputs).logits[0, -1]
    assert_close(next_logits(stream, QUESTION), whole, CLOSE)
    plain = greedy(model, 16, **inputs)
    assert len(set(plain)) > 2, "an answer that repeats itself shows little"
    assert answer(stream, QUESTION, 16) == decoded(model, plain)
    generated = model.generate(**inputs, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    assert decoded(model, generated[0, ids.shape[1] :].tolist()) == decoded(model, plain)


def test_the_answer_depends_on_every_frame(model: Model):
    """A negative control of the tests above and below: the last frame, and one far outside the window."""
    whole = next_logits(watched(model, 30), QUESTION)
    for changed in (0, 29):
        stream = model.stream()
        for i, frame in enumerate(pictures(30)):
            stream.see(picture(99) if i == changed else frame)
        assert not torch.allclose(next_logits(stream, QUESTION), whole, atol=1e-3)


def test_a_stream_without_frames_is_a_chat(model: Model):
    messages = [{"role": "user", "content": QUESTION}]
    inputs = model.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    generated = model.generate(**inputs, max_new_tokens=16, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ].tolist()
    assert answer(model.stream(), QUESTION, 16) == decoded(model, generated)
    assert decoded(model, greedy(model, 16, **inputs)) == decoded(model, generated)


def test_generate_equals_a_plain_loop_on_messages(model: Model):
    content = [
        {"type": "text", "text": "Compare"}, {"type": "video", "video": np.stack(pictures(4)), "fps": 2.0},
        {"type": "image", "image": picture(9)}, {"type": "text", "text": QUESTION},
    ]  # fmt: skip
    inputs = model.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    generated = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert generated[0, inputs["input_ids"].shape[1] :].tolist() == greedy(model, 16, **inputs)


class Twin:
    """A stream, and the prompt it stands for."""

    def __init__(self, model: Model, longest: float = math.inf) -> None:
        self.stream, self.prompt, self._longest = model.stream(fps=None), Prompt(model), longest
        self._phase, self._now, self._start = "new", 0.0, 0.0

    def see(self, frame: np.ndarray, later: float) -> None:
        self._now += later
        self.stream.see(frame, self._now)
        if self._phase != "video" or self._now - self._start > self._longest - 1e-6:
            before = {"new": SYSTEM + USER, "video": VISION_END, "answered": f"{IM_END}\n{USER}"}[self._phase]
            self.prompt.text(before + VISION_START)
            self.prompt.open_video()
            self._phase, self._start = "video", self._now
        self.prompt.frame(frame, self._now - self._start)

    def ask(self, question: str) -> str:
        """The prompt goes on with a question; its text."""
        opening = {"new": SYSTEM + USER, "video": VISION_END, "answered": f"{IM_END}\n{USER}"}[self._phase]
        text = f"{opening}{question}{ASSISTANT}"
        self.prompt.text(text)
        return text

    def remember(self, question: str, pieces: int) -> None:
        """Ask, read so many pieces of the answer, and close it."""
        before = self.stream.stats.tokens
        reply = self.stream.ask(question, remember=True, max_new_tokens=6)
        for _ in zip(range(pieces), reply, strict=False):
            pass
        reply.close()
        if pieces:
            asked = len(self.stream.model.processor.encode(self.ask(question)))
            for _ in range(self.stream.stats.tokens - before - asked):
                token = int(self.prompt.logits().argmax())
                assume(token not in (self.stream.model.config.image_token_id, self.stream.model.config.video_token_id))
                self.prompt.text([token])
            self._phase = "answered"

    def compare(self) -> None:
        ids = torch.tensor([self.stream.model.processor.encode(self.ask(QUESTION))])
        found = self.stream.model(ids, past_key_values=self.stream.state.fork()).logits[0, -1]
        assert_close(found, self.prompt.logits(), CLOSE)


SIZES = ((56, 56), (56, 84), (112, 30), (200, 90))
SEE = st.tuples(st.just("see"), st.sampled_from(SIZES), st.sampled_from([0.2, 0.5, 1.0, 3.7]))
REMEMBER = st.tuples(st.just("remember"), st.integers(0, 7))
STEPS = st.lists(st.one_of(SEE, SEE, REMEMBER, st.sampled_from([("ask",), ("fork",), ("save",)])), max_size=12)


@settings(max_examples=15, deadline=None)
@given(STEPS, st.sampled_from([None, 0.6, 2.0]))
def test_any_session_is_one_prompt(
    model: Model, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple], longest: float | None
):
    """Frames of any size at any time, videos that end or not, answers forgotten or remembered, whole or in part,
    forks, restarts."""
    twin = Twin(model, longest or math.inf)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.processor.settings, "max_video_seconds", longest)
        for i, (kind, *values) in enumerate(steps):
            stream = twin.stream
            if kind == "see":
                twin.see(picture(i, *values[0]), values[1])
            elif kind == "remember":
                twin.remember(f"question {i}", values[0])
            elif kind == "ask":
                next(stream.ask("something else", max_new_tokens=3), "")
            elif kind == "fork":
                twin.stream = stream.fork()
                stream.see(picture(77), 1e6)
            else:
                stream.save(path := tmp_path_factory.mktemp("saved") / "stream")
                twin.stream = Stream.load(model, path)
        twin.compare()


@pytest.mark.parametrize("rate", [2.0, 30.0, 3.0])
def test_a_video_ends_after_so_many_seconds(model: Model, monkeypatch: pytest.MonkeyPatch, rate: float):
    """At the rates of cameras, in times as files write them, in milliseconds: after 2 * rate frames, no earlier, no
    later. A pause ends it, too."""
    monkeypatch.setattr(model.processor.settings, "max_video_seconds", 2.0)
    stream, starts = model.stream(fps=None), []
    for i in range(int(4 * rate) + 1):
        stream.see(picture(0), round(7 + i / rate, 3))
        starts.append(stream.session.start)
    assert [starts.count(start) for start in dict.fromkeys(starts)] == [2 * rate, 2 * rate, 1]
    before = stream.stats.tokens
    stream.see(picture(0), 1e6)
    assert stream.stats.tokens == before + 2 + 6 and stream.session.start == 1e6


# Asking


def test_asking_leaves_no_trace(model: Model):
    stream = watched(model)
    before, stats = remembered(stream), stream.stats
    first = answer(stream, QUESTION)
    assert same_memory(remembered(stream), before)
    assert stream.stats == stats
    assert answer(stream, QUESTION) == first


def test_an_answer_is_about_the_time_of_the_question(model: Model):
    stream, other = watched(model), watched(model)
    reply = stream.ask(QUESTION, max_new_tokens=12)
    started = stream.ask(QUESTION, max_new_tokens=12)
    first = next(started)
    for frame in pictures(9)[5:]:
        stream.see(frame)
        other.see(frame)
    middle = answer(stream, QUESTION)
    assert "".join(reply) == first + "".join(started) == answer(watched(model), QUESTION) != middle
    assert same_memory(remembered(stream), remembered(other))


def test_a_remembered_answer_is_in_the_memory(model: Model):
    stream, other = watched(model), watched(model)
    assert answer(stream, QUESTION, remember=True) == answer(other, QUESTION)
    assert not same_memory(remembered(stream), remembered(other))
    assert answer(stream, "And now?") != answer(other, "And now?")


@pytest.mark.parametrize("end", ["read", "closed", "dropped", "never begun"])
def test_nothing_comes_between_a_remembered_answer(model: Model, tmp_path: Path, end: str):
    stream = watched(model)
    reply = stream.ask(QUESTION, remember=True, max_new_tokens=6)
    if end != "never begun":
        next(reply)
    during = remembered(stream)
    for forbidden in (
        lambda: stream.see(picture(1)),
        lambda: stream.ask("And?"),
        lambda: stream.ask("And?", remember=True),
        stream.fork,
        lambda: stream.save(tmp_path / "stream"),
    ):
        with pytest.raises(InfiniteVLError, match="still being written"):
            forbidden()
    assert same_memory(remembered(stream), during)
    if end == "read":
        list(reply)
    elif end in ("closed", "never begun"):
        reply.close()  # type: ignore[attr-defined]
    del reply
    assert stream.see(picture(1))
    assert answer(stream, "And?")
    only_frames = 6 * 6 + len(model.processor.encode(SYSTEM + USER + VISION_START))
    assert (stream.stats.tokens == only_frames) == (end == "never begun")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": ""}, "the question is empty"),
        ({"question": " \n"}, "the question is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -0.1}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0"),
    ],
)
@pytest.mark.parametrize("remember", [False, True])
def test_questions_that_cannot_be_asked(model: Model, options: dict, message: str, remember: bool):
    stream = watched(model, 1)
    before = remembered(stream)
    with pytest.raises(InfiniteVLError, match=message):
        stream.ask(**{"question": QUESTION, "remember": remember, **options})
    assert same_memory(remembered(stream), before)
    assert stream.see(picture(1))


def test_the_answer_ends_in_time(model: Model):
    stream = watched(model)
    whole = answer(stream, QUESTION, 40)
    assert whole.startswith(answer(stream, QUESTION, 5).rstrip("\ufffd"))
    stop = next(whole[i : i + 2] for i in range(6, 30) if "\ufffd" not in whole[i : i + 2])
    assert answer(stream, QUESTION, 40, stop=["never", stop]) == whole[: whole.find(stop)]


def test_sampled_answers(model: Model):
    stream = watched(model)
    drawn = {answer(stream, QUESTION, temperature=2.0, seed=seed) for seed in range(4)}
    assert len(drawn) == 4
    assert answer(stream, QUESTION, temperature=2.0, seed=3) in drawn
    assert answer(stream, QUESTION, temperature=2.0, top_p=1e-6) == answer(stream, QUESTION)


def test_marks_in_a_question_are_plain_text(model: Model):
    stream = watched(model, 1)
    before = stream.stats.tokens
    list(stream.ask(f"{IM_END}{VISION_START}{IMAGE}", remember=True, max_new_tokens=1))
    written = stream.stats.tokens - before
    assert written == len(f"{IM_END}{VISION_START}{IMAGE}") + len(model.processor.encode(VISION_END + ASSISTANT)) + 1


# Frames


@pytest.mark.parametrize(
    ("fps", "times", "taken"),
    [
        (2.0, [0.0, 0.1, 0.49, 0.5, 0.9, 1.0, 2.7, 2.9, 3.0], "x  x xx x"),
        (3.0, [0.0, 0.2, 0.333, 0.5, 0.667, 1.0, 1.333, 1.667], "x x xxxx"),
        (1.0, [5.0, 5.5, 6.0], "x x"),
        (None, [0.0, 0.0, 0.1, 0.1], "xxxx"),
        (2.0, [None, None, None], "xxx"),
        (2.0, [0.0, None, None, 1.2, 1.5], "xxx x"),
    ],
)
def test_frames_are_taken_by_their_times(model: Model, fps: float | None, times: list, taken: str):
    stream = model.stream(fps=fps)
    found = ["x" if stream.see(picture(0), time) else " " for time in times]
    assert "".join(found) == taken
    assert stream.stats.frames == taken.count("x")


def test_every_frame_that_a_video_gives_is_taken(model: Model):
    """Files write times in milliseconds; the stream samples what open_video has sampled already."""
    from infinitevl.video.sampling import Sampler

    stream, sampler = model.stream(fps=3.0), Sampler(3.0, slack=1e-3)
    times = [time for i in range(150) if sampler.take(time := round(i / 30, 3))]
    assert len(times) == 15
    for time in times:
        assert stream.see(picture(0), time)


def test_a_time_that_goes_back_continues_the_clock(model: Model):
    """A second source, or the same one again, is more of the stream."""
    one, other = model.stream(), model.stream()
    for i, time in enumerate([0.0, 0.5, 1.0, 0.0, 0.5, 0.2, 0.7]):
        assert one.see(picture(i), time)
        assert other.see(picture(i), i / 2)
    assert one.session.last == 3.0
    assert same_memory(remembered(one), remembered(other))


def test_a_frame_that_comes_too_soon_changes_nothing(model: Model):
    stream = watched(model, 2)
    before, session = remembered(stream), repr(stream.session)
    assert not stream.see(picture(5), 0.6)
    assert same_memory(remembered(stream), before)
    assert repr(stream.session) == session


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((56, 56, 3), np.float32),
        torch.zeros(56, 56, 3),
        np.zeros((56, 56, 3), np.int64),
        np.zeros((56, 56), np.uint8),
        np.zeros((56, 56, 4), np.uint8),
        np.zeros((3, 56, 56), np.uint8),
        np.zeros((1, 56, 56, 3), np.uint8),
        np.zeros((0, 56, 3), np.uint8),
        np.zeros((1, 300, 3), np.uint8),
        "a path",
        None,
    ],
    ids=lambda bad: f"{getattr(bad, 'dtype', 'other')}-{list(getattr(bad, 'shape', []))}",
)
def test_bad_frames(model: Model, bad: object, first: bool):
    stream = model.stream() if first else watched(model, 2)
    before, session = remembered(stream), repr(stream.session)
    with pytest.raises(InfiniteVLError) as error:
        stream.see(bad)  # type: ignore[arg-type]
    assert len(str(error.value).splitlines()) == 1
    assert same_memory(remembered(stream), before)
    assert repr(stream.session) == session
    assert stream.see(picture(0))


@pytest.mark.parametrize("time", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_bad_times(model: Model, time: float):
    stream = watched(model, 1)
    with pytest.raises(InfiniteVLError, match="number of seconds"):
        stream.see(picture(0), time)
    assert stream.see(picture(0), 0.5)


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf")])
def test_bad_rates(model: Model, fps: float):
    with pytest.raises(InfiniteVLError, match="fps must be a positive number"):
        model.stream(fps=fps)


def test_frames_of_any_make(model: Model):
    """Read-only arrays, flipped views (BGR to RGB) and tensors are frames like others, and come to no harm."""
    frame = picture(3)
    locked = frame.copy()
    locked.setflags(write=False)
    streams = [model.stream() for _ in range(4)]
    flipped = frame[..., ::-1].copy()[..., ::-1]
    for stream, made in zip(streams, (frame, locked, flipped, torch.from_numpy(frame)), strict=True):
        stream.see(made)
        assert same_memory(remembered(stream), remembered(streams[0]))
    assert np.array_equal(frame, picture(3))


@pytest.mark.parametrize(
    ("largest", "given", "most"), [(112 * 112, None, 112 * 112), (10**9, None, MAX_PIXELS), (784, 3136, 3136)]
)
def test_frames_are_as_large_as_the_model_knows(
    model: Model, monkeypatch: pytest.MonkeyPatch, largest: int, given: int | None, most: int
):
    monkeypatch.setattr(model.processor, "settings", MediaSettings(min_pixels=784, max_pixels=largest))
    stream = model.stream(max_pixels=given)
    assert stream.session.max_pixels == most
    stream.see(np.zeros((360, 640, 3), np.uint8))
    before = stream.stats.tokens
    stream.see(np.zeros((360, 640, 3), np.uint8))
    assert most / 784 / 2 <= stream.stats.tokens - before <= most / 784


def test_a_model_without_a_processor(model: Model):
    bare = random_model(0)
    bare.processor = None
    with pytest.raises(InfiniteVLError, match="no processor"):
        bare.stream()


# Memory


def test_memory_stays_the_same_over_many_frames(model: Model):
    stream = model.stream(min_pixels=784)
    empty, places = stream.stats.state_bytes, {name: t.data_ptr() for name, t in stream.state.tensors().items()}
    for i in range(300):
        assert stream.see(picture(i, 28, 28))
        assert stream.stats.state_bytes == empty == stream.state.nbytes
    stats = stream.stats
    assert {name: t.data_ptr() for name, t in stream.state.tensors().items()} == places
    assert (stats.frames, stats.dropped) == (300, 0)
    assert stats.tokens == 300 + len(model.processor.encode(SYSTEM + USER + VISION_START)) == int(stream.state.count)
    assert 0 < stats.seconds_per_frame < 1
    assert all(tensor.isfinite().all() for tensor in stream.state.tensors().values())


def test_forks_are_independent(model: Model):
    trunk, control = watched(model), watched(model)
    fork, other = trunk.fork(), trunk.fork()
    answer(fork, "Whose?", remember=True)
    fork.see(picture(50))
    for stream in (trunk, control):
        stream.see(picture(60), 7.0)
    assert same_memory(remembered(trunk), remembered(control))
    assert answer(trunk, QUESTION) == answer(control, QUESTION) != answer(fork, QUESTION)
    assert (trunk.stats.frames, fork.stats.frames, other.stats.frames) == (6, 6, 5)
    assert not other.see(picture(60), 2.1)
    assert answer(other, QUESTION) == answer(watched(model), QUESTION)


@pytest.mark.parametrize("phase", ["new", "video", "answered"])
@pytest.mark.parametrize("fps", [2.0, None])
def test_a_saved_stream_goes_on_exactly(model: Model, tmp_path: Path, phase: str, fps: float | None):
    stream, path = model.stream(fps=fps, max_pixels=100_000), tmp_path / "stream"
    if phase != "new":
        for i in (0, 1, 2, 3):
            stream.see(picture(i), 0.5 + i % 3)  # a time goes back
    if phase == "answered":
        answer(stream, remember=True)
    stream.save(path)
    loaded = Stream.load(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["stream"]
    assert same_memory(remembered(loaded), remembered(stream))
    assert (loaded.session, loaded.stats) == (stream.session, stream.stats)
    for i, time in enumerate([2.0, 2.1, 2.6, None, 0.0]):
        assert loaded.see(picture(i, 112, 56), time) == stream.see(picture(i, 112, 56), time)
    assert same_memory(remembered(loaded), remembered(stream))
    assert answer(loaded, QUESTION) == answer(stream, QUESTION)


def test_the_file_of_a_stream_does_not_grow(model: Model, tmp_path: Path):
    sizes = []
    for count in (1, 20):
        watched(model, count).save(path := tmp_path / f"{count}")
        sizes.append(path.stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 200


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "stream"
    watched(model, 2).save(path)
    return path


def refuses(model: Model, path: Path, message: str | None = None) -> None:
    with pytest.raises(InfiniteVLError, match=message) as error:
        Stream.load(model, path)
    assert len(str(error.value).splitlines()) == 1
    assert str(path) in str(error.value)


def test_files_that_are_no_saved_stream(model: Model, saved: Path, tmp_path: Path):
    whole = saved.read_bytes()
    for kept in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:kept])
        refuses(model, tmp_path / "cut", "damaged")
    refuses(model, tmp_path / "nothing", "no such state file")
    refuses(model, tmp_path)
    model.allocate_state().save(tmp_path / "state")
    refuses(model, tmp_path / "state", "not a saved stream")


def test_streams_of_another_model(saved: Path, model: Model):
    refuses(random_model(0, sliding_window=WINDOW + 1), saved, "another model: its sliding_window")
    refuses(random_model(0, sliding_window=WINDOW, num_hidden_layers=4), saved, "another model")
    refuses(random_model(0, sliding_window=WINDOW).double(), saved, "float32.*needs torch.float64")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 7))
def test_a_damaged_header(model: Model, saved: Path, tmp_path_factory: pytest.TempPathFactory, place: int, bit: int):
    """A flipped bit is noticed, or at least does no harm."""
    data = bytearray(saved.read_bytes())
    data[place % (8 + int.from_bytes(data[:8], "little"))] ^= 1 << bit
    path = tmp_path_factory.mktemp("damaged") / "stream"
    path.write_bytes(data)
    try:
        stream = Stream.load(model, path)
    except InfiniteVLError as error:
        assert len(str(error).splitlines()) == 1
    else:
        stream.see(picture(0))


@pytest.mark.parametrize("place", ["nowhere/stream", "."])
def test_a_stream_that_cannot_be_written(model: Model, tmp_path: Path, place: str):
    stream = watched(model, 1)
    with pytest.raises(InfiniteVLError, match="cannot write"):
        stream.save(tmp_path / place)
    assert list(tmp_path.iterdir()) == []
    assert stream.see(picture(1))


def test_another_model_of_the_same_kind_goes_on(model: Model, saved: Path):
    """Other weights read the same state: the file is bound to sizes, not to weights."""
    other = random_model(5, sliding_window=WINDOW)
    randomise(other)
    assert Stream.load(other, saved).see(picture(1))
