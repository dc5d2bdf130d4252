"""Many streams in one engine are each what they would be alone, wherever their memory lies and whatever others do."""

import random
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from engine_kit import TOKENS, Frames, Listener, alone, ask, picture, running, watch

from infinitevl.engine import runner
from infinitevl.engine.engine import Engine
from infinitevl.engine.runner import Runner
from infinitevl.engine.store import Store
from infinitevl.engine.types import Asking, Budget
from infinitevl.errors import Conflict, InfiniteVLError, NotFound, Overloaded, StorageError, TooLarge
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model
from infinitevl.streaming.stream import Stream

QUESTIONS = ["What is it?", "How many are there?", "Where?", "What was on the first sign, long ago?"]


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize(("slots", "longest"), [(2, None), (5, 1.0)])
def test_beside_others_parked_and_restored_at_random_is_as_alone(
    model: Model, store: Store, monkeypatch: pytest.MonkeyPatch, slots: int, longest: float | None
):
    """16 streams of three sizes and rates, more than there are slots and places in the host's memory; the engine is
    closed and started again on the way; questions come at any time; videos end at other times than other streams', or
    never. Every answer is that of a stream alone, greedy, float32."""
    monkeypatch.setattr(model.processor.settings, "max_video_seconds", longest)
    draw = random.Random(slots)
    sizes = [(56, 84), (56, 56), (84, 84)]
    films = [[picture(100 * i + t, *sizes[i % 3]) for t in range(8)] for i in range(16)]
    lone = [Stream(model, fps=None) for _ in films]
    expected, asked, places = [], [], set()
    engine = Engine(model, Budget(slots=slots, host=3, save_every=0.2), store)
    try:
        ids = [engine.open({"n": i}, fps=None) for i in range(16)]
        for t in range(8):
            frames = Frames()
            for i in draw.sample(range(16), 16):
                time = t / (2 + i % 3)
                engine.push(ids[i], films[i][t], time, frames, wait=60)
                lone[i].see(films[i][t], time)
            assert set(frames.wait(16)) == {"seen"}
            places |= {engine.look(id).place for id in ids}
            for i in draw.sample(range(16), 3):
                question, listener = draw.choice(QUESTIONS), Listener()
                engine.ask(ids[i], question, Asking(max_tokens=TOKENS), listener)
                asked.append(listener)
                expected.append("".join(lone[i].ask(question, max_new_tokens=TOKENS)))
            if t == 4:
                for listener in asked:
                    listener.wait()
                engine.close()
                engine = Engine(model, Budget(slots=slots, host=3, save_every=0.2), store)
                assert {engine.look(id).place for id in ids} == {"disk"}
        assert [listener.wait().text for listener in asked] == expected
        assert len(set(expected)) > 12, "answers that are all alike would show nothing"
        assert places == {"slot", "host", "disk"}
        assert [engine.look(id).frames for id in ids] == [8] * 16
    finally:
        engine.close()


def test_a_damaged_memory_is_noticed(model: Model, monkeypatch: pytest.MonkeyPatch):
    """The test above can fail: a stream that takes another's place in the batch answers otherwise."""
    films = [[picture(10 * i + t) for t in range(4)] for i in range(2)]
    with running(model) as engine:
        ids = [engine.open({}, fps=None) for _ in films]
        for id, film in zip(ids, films, strict=True):
            watch(engine, id, film)
        pool = engine._pool
        a, b = (engine._streams[id].seat for id in ids)
        rows = pool.state.take([b.slot, a.slot])
        pool.state.put([a.slot, b.slot], rows)
        assert ask(engine, ids[0]) == alone(model, films[1]) != alone(model, films[0])


@pytest.mark.usefixtures("reading")
def test_an_answer_is_of_the_moment_of_the_question(model: Model):
    """Frames go on while it is written, and it does not see them."""
    film = [picture(t) for t in range(12)]
    with running(model) as engine:
        id = engine.open({}, fps=None)
        watch(engine, id, film[:6])
        listener = Listener()
        engine.ask(id, "What is it?", Asking(max_tokens=40), listener)
        watch(engine, id, film[6:], start=6)
        answer = listener.wait()
        assert answer.text == alone(model, film[:6], tokens=40)
        assert (answer.frames, answer.time, answer.reason) == (6, 2.5, "length")
        assert answer.completion_tokens == 40
        assert ask(engine, id) == alone(model, film)


@pytest.mark.usefixtures("reading")
def test_remembered_answers_are_part_of_the_stream(model: Model):
    film = [picture(t) for t in range(6)]
    stream = Stream(model, fps=None)
    for i, frame in enumerate(film[:3]):
        stream.see(frame, i / 2)
    first = "".join(stream.ask("What?", remember=True, max_new_tokens=TOKENS))
    for i, frame in enumerate(film[3:], 3):
        stream.see(frame, i / 2)
    second = "".join(stream.ask("And now?", max_new_tokens=TOKENS))
    with running(model) as engine:
        id = engine.open({}, fps=None)
        watch(engine, id, film[:3])
        listener, frames = Listener(), Frames()
        engine.ask(id, "What?", Asking(max_tokens=TOKENS, remember=True), listener)
        with pytest.raises(Conflict):
            engine.ask(id, "What else?", Asking(remember=True), Listener())
        for i, frame in enumerate(film[3:], 3):
            engine.push(id, frame, i / 2, frames, wait=60)
        assert listener.wait().text == first
        assert frames.wait(3) == ["seen"] * 3
        assert ask(engine, id, "And now?") == second
        assert engine.look(id).tokens == stream.stats.tokens


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("remember", [False, True])
def test_cancelled(model: Model, remember: bool):
    """What was told is a beginning of the answer, all is let go of, and the stream goes on."""
    film = [picture(t) for t in range(4)]
    with running(model) as engine:
        id = engine.open({}, fps=None)
        watch(engine, id, film)
        listener = Listener()
        name = engine.ask(id, "What?", Asking(max_tokens=100_000, remember=remember), listener)
        while len(listener.pieces) < 3:
            time.sleep(0.001)
        engine.cancel(name)
        end = listener.wait()
        assert end.reason == "cancelled"
        assert alone(model, film, "What?", end.completion_tokens + 1).startswith(end.text)
        engine.cancel(name)
        watch(engine, id, film, start=4)
        assert engine.load() == {"streams": 1, "slots": 1, "answers": 0, "waiting_frames": 0}


def test_forks_and_snapshots(model: Model, store: Store):
    film = [picture(t) for t in range(6)]
    with running(model, store) as engine:
        id = engine.open({"name": "first"}, fps=None)
        watch(engine, id, film[:3])
        branch = engine.fork(id, {"name": "second"})
        engine.snapshot(id, "half", {"by": "me"})
        with pytest.raises(Conflict, match="half"):
            engine.snapshot(id, "half", {})
        watch(engine, id, film[3:], start=3)
        again = engine.open({}, snapshot="half")
        assert ask(engine, id) == alone(model, film)
        assert ask(engine, branch) == ask(engine, again) == alone(model, film[:3])
        watch(engine, again, film[3:], start=3)
        assert ask(engine, again) == alone(model, film)
        assert (engine.look(branch).about, engine.look(branch).frames) == ({"name": "second"}, 3)
        with pytest.raises(NotFound):
            engine.open({}, snapshot="none")
    stored = store.look("snapshots", "half")
    assert (stored.about, stored.frames) == ({"by": "me"}, 3)


def test_a_snapshot_is_a_saved_stream(model: Model, store: Store, tmp_path: Path):
    film = [picture(t) for t in range(3)]
    with running(model, store) as engine:
        id = engine.open({}, fps=None)
        watch(engine, id, film)
        engine.snapshot(id, "here", {})
    file = tmp_path / "copy"
    file.write_bytes(b"".join(store.read("snapshots", "here")))
    assert "".join(Stream.load(model, file).ask("What is it?", max_new_tokens=TOKENS)) == alone(model, film)


def test_the_rate_and_the_clock_are_the_streams(model: Model):
    with running(model) as engine:
        id, frames = engine.open({}, fps=2.0), Frames()
        for i in range(9):
            engine.push(id, picture(i), i / 4, frames, wait=60)
        assert sorted(frames.wait(9)) == ["seen"] * 5 + ["skipped"] * 4
        engine.push(id, picture(9), 0.0, frames, wait=60)  # a new source
        assert frames.wait(10)[-1] == "seen"
        assert engine.look(id).seconds == 2.5


def test_under_overload_the_newest_frames_stay(model: Model, monkeypatch: pytest.MonkeyPatch):
    """The engine is stopped in a frame; of ten that come two wait; each is told of, answers come, memory is right."""
    gate, inside, watch_them = threading.Event(), threading.Event(), Runner.watch

    def slow(*args: object) -> None:
        inside.set()
        assert gate.wait(60)
        watch_them(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Runner, "watch", slow)
    film = [picture(t) for t in range(11)]
    with running(model) as engine:
        id, frames, listener = engine.open({}, fps=None), Frames(), Listener()
        engine.push(id, film[0], 0.0, frames)
        assert inside.wait(60)
        for i in range(1, 11):
            engine.push(id, film[i], i / 2, frames)
        assert frames.wait(8) == ["dropped"] * 8
        assert engine.look(id).waiting == 3  # two, and the one that is being computed
        threading.Timer(0.05, gate.set).start()
        engine.ask(id, "What is it?", Asking(max_tokens=TOKENS), listener)
        assert frames.wait(11)[8:] == ["seen"] * 3
        view = engine.look(id)
        assert (view.frames, view.dropped, view.seconds) == (3, 8, 5.0)
        assert listener.wait().reason == "length"
        stream = Stream(model, fps=None)
        for i in (0, 9, 10):
            stream.see(film[i], i / 2)
        assert ask(engine, id) == "".join(stream.ask("What is it?", max_new_tokens=TOKENS))


def test_limits(model: Model, store: Store):
    with running(model, store, streams=2, questions=1, prompt=80) as engine:
        id, listener = engine.open({}), Listener()
        engine.open({})
        for full in (lambda: engine.open({}), lambda: engine.fork(id, {})):
            with pytest.raises(Overloaded, match="2 streams"):
                full()
        name = engine.ask(id, "What?", Asking(max_tokens=100_000), listener)
        with pytest.raises(Overloaded, match="1 questions"):
            engine.ask(id, "What?", Asking(), Listener())
        engine.cancel(name)
        listener.wait()
        with pytest.raises(TooLarge, match="at most 80"):
            engine.ask(id, "What? " * 40, Asking(), Listener())
        with pytest.raises(TooLarge, match="at most 80"):
            engine.chat([{"role": "user", "content": "What? " * 40}], Asking(), Listener())
        assert ask(engine, id), "refused questions leave no trace"
        assert len(store.names("streams")) == 2


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda e, id: e.ask(id, " ", Asking(), print), "the question is empty"),
        (lambda e, id: e.ask(id, "What?", Asking(max_tokens=0), print), "at least 1"),
        (lambda e, id: e.ask(id, "What?", Asking(temperature=-1), print), "temperature"),
        (lambda e, id: e.push(id, np.zeros((4, 4), np.uint8)), r"uint8 \[H, W, 3\]"),
        (lambda e, id: e.push(id, np.zeros((1, 400, 3), np.uint8)), "200 times longer"),
        (lambda e, id: e.push(id, picture(0), float("nan")), "number of seconds"),
        (lambda e, id: e.open({}, fps=0), "fps must be"),
    ],
)
def test_what_cannot_be_used(model: Model, call, error: str):
    with running(model) as engine:
        id = engine.open({})
        with pytest.raises(InfiniteVLError, match=error):
            call(engine, id)
        watch(engine, id, [picture(0)])
        assert ask(engine, id) == alone(model, [picture(0)])


@pytest.mark.usefixtures("reading")
def test_dropped_streams(model: Model, store: Store):
    with running(model, store) as engine:
        id, listener = engine.open({}), Listener()
        engine.ask(id, "What?", Asking(max_tokens=100_000), listener)
        engine.drop(id)
        assert listener.wait().reason == "cancelled"
        for use in (engine.look, engine.drop, engine.norms, lambda id: engine.push(id, picture(0))):
            with pytest.raises(NotFound):
                use(id)
        assert engine.load() == {"streams": 0, "slots": 0, "answers": 0, "waiting_frames": 0}
        assert store.names("streams") == []


@pytest.mark.usefixtures("reading")
def test_conversations(model: Model):
    """The same as generate, with pictures and a video, in pieces, beside streams that go on."""
    messages = [
        {"role": "user", "content": [
            {"type": "image", "image": picture(1, 84, 56)}, {"type": "text", "text": "First."},
            {"type": "video", "video": np.stack([picture(t) for t in range(30)]), "fps": 2.0},
            {"type": "text", "text": "What came first? " * 20}, {"type": "image", "image": picture(2)},
        ]},
    ]  # fmt: skip
    inputs = model.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    expected = model.processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    with running(model) as engine:
        id, listener = engine.open({}, fps=None), Listener()
        engine.chat(messages, Asking(max_tokens=TOKENS), listener)
        watch(engine, id, [picture(t) for t in range(4)])
        answer = listener.wait()
        assert answer.text == expected
        assert answer.prompt_tokens == inputs["input_ids"].shape[1] > 256, "more than one piece"
        assert ask(engine, id) == alone(model, [picture(t) for t in range(4)])


def test_a_damaged_stream_is_left_out_and_the_others_go_on(model: Model, store: Store):
    film = [picture(t) for t in range(3)]
    with running(model, store) as engine:
        ids = [engine.open({}, fps=None) for _ in range(3)]
        for id in ids:
            watch(engine, id, film)
    whole = Path(store.folder) / "streams"
    header, tensors = (whole / f"{id}.safetensors" for id in ids[:2])
    header.write_bytes(b"nonsense")
    tensors.write_bytes(tensors.read_bytes()[:-1000])
    with running(model, store) as engine:
        assert set(engine.streams()) >= {ids[2]}
        assert ids[0] not in engine.streams()
        frames = Frames()
        for id in ids[1:]:
            if id in engine.streams():
                engine.push(id, picture(3), 1.5, frames)
        assert ask(engine, ids[2]) in {alone(model, film), alone(model, [*film, picture(3)])}
        assert "seen" in frames.wait(1)
        if ids[1] in engine.streams():
            with pytest.raises(StorageError):
                ask(engine, ids[1])
    assert header.exists(), "what cannot be read is not thrown away"


def test_a_full_disk_stops_nothing(model: Model, store: Store, monkeypatch: pytest.MonkeyPatch):
    film = [picture(t) for t in range(4)]
    engine = Engine(model, Budget(slots=2, host=1, save_every=0.01), store)
    ids = [engine.open({}, fps=None) for _ in range(4)]

    def full(*_: object) -> None:
        raise StorageError("the store: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", full)
        for id in ids:
            watch(engine, id, film)
        with pytest.raises(StorageError, match="No space"):
            engine.snapshot(ids[0], "none", {})
        with pytest.raises(StorageError, match="No space"):
            engine.open({})
        assert [ask(engine, id) for id in ids] == [alone(model, film)] * 4
        with pytest.raises(StorageError, match="No space"):
            engine.close()
    assert len(engine.streams()) == 4


def test_a_step_that_fails_harms_nobody(model: Model, monkeypatch: pytest.MonkeyPatch):
    film, encode, broken = [picture(t) for t in range(4)], runner.encode_frames, threading.Event()

    def failing(*args: object) -> object:
        if broken.is_set():
            raise RuntimeError("out of memory")
        return encode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "encode_frames", failing)
    with running(model) as engine:
        id, frames = engine.open({}, fps=None), Frames()
        watch(engine, id, film[:2])
        broken.set()
        engine.push(id, picture(99), 1.0, frames)
        assert frames.wait(1) == ["refused"]
        broken.clear()
        watch(engine, id, film[2:], start=3)
        stream = Stream(model, fps=None)
        for frame, at in zip(film, (0.0, 0.5, 1.5, 2.0), strict=True):
            stream.see(frame, at)
        assert ask(engine, id) == "".join(stream.ask("What is it?", max_new_tokens=TOKENS))


def test_what_is_saved_is_there_after_a_crash(model: Model, store: Store):
    """No close: a second engine finds what the first has told to be saved."""
    film = [picture(t) for t in range(4)]
    with running(model, store, save_every=1000.0) as engine:
        id = engine.open({}, fps=None)
        watch(engine, id, film[:2])
        engine.describe(id, {"name": "gate"})
        engine.save(id)
        watch(engine, id, film[2:], start=2)
        assert engine.look(id).saved[0] == 2
        with running(model, Store(store.folder)) as other:
            assert (other.look(id).about, other.look(id).frames) == ({"name": "gate"}, 2)
            assert ask(other, id) == alone(model, film[:2])


@pytest.mark.parametrize("frames_come", [True, False])
def test_two_engines_share_a_store(model: Model, store: Store, frames_come: bool):
    """A stream released by one goes on in another; one that another has taken, as after a crash, is let go of, and
    never overwritten."""
    film = [picture(t) for t in range(6)]
    first = Engine(model, Budget(slots=2, save_every=0.05), store, shared=True)
    second = Engine(model, Budget(slots=2, save_every=0.05), Store(store.folder), shared=True)
    try:
        handed, taken = (first.open({"n": i}, fps=None) for i in range(2))
        for id in (handed, taken):
            watch(first, id, film[:2])
            with pytest.raises(NotFound):
                second.look(id)
        first.release(handed)
        with pytest.raises(NotFound):
            first.look(handed)
        second.adopt(handed)
        watch(second, handed, film[2:4], start=2)
        assert ask(second, handed) == alone(model, film[:4])
        first.save(taken)
        second.adopt(taken)
        watch(second, taken, film[2:], start=2)
        with suppress(NotFound):  # it may have noticed already
            if frames_come:
                first.push(taken, film[2], 1.0)
        for _ in range(600):
            if taken not in first.streams():
                break
            time.sleep(0.01)
        assert taken not in first.streams()
        second.release(taken)
        first.adopt(taken)
        assert ask(first, taken) == alone(model, film)
        with pytest.raises(NotFound):
            second.adopt("stream-0")
    finally:
        first.close()
        second.close()


def test_a_long_question_keeps_the_streams_waiting_no_longer_than_a_short_one(
    model: Model, monkeypatch: pytest.MonkeyPatch
):
    """Who asks turns it into tokens, not the engine's thread."""
    with running(model, prompt=4096) as engine:
        id, lengths, encode = engine.open({}), [], model.processor.encode
        monkeypatch.setattr(model.processor, "encode", lambda text, **how: lengths.append(len(text)) or encode(text))
        ask(engine, id, "What is it? " * 100, max_tokens=1)
        assert lengths and max(lengths) < 100


def test_calls_do_not_keep_the_streams_waiting(model: Model):
    """A call that makes another one: whenever the engine looks, one is there."""
    with running(model) as engine:
        id, stop = engine.open({}, fps=None), threading.Event()

        def again() -> None:
            if not stop.is_set():
                engine._loop.call(again)

        again()
        try:
            watch(engine, id, [picture(t) for t in range(3)])
        finally:
            stop.set()


def test_frames_without_a_time_are_of_now(model: Model):
    with running(model) as engine:
        id, frames = engine.open({}, fps=None), Frames()
        engine.push(id, picture(0), None, frames)
        time.sleep(0.2)
        engine.push(id, picture(1), None, frames)
        frames.wait(2)
        assert 0.2 <= frames.results[1].time - frames.results[0].time < 5


def test_after_the_end(model: Model):
    with running(model) as engine:
        id, listener, frames = engine.open({}, fps=None), Listener(), Frames()
        engine.ask(id, "What?", Asking(max_tokens=100_000, remember=True), listener)
        for i in range(3):
            engine.push(id, picture(i), i / 2, frames)
    assert listener.wait().reason == "cancelled"
    assert frames.wait(3) == ["dropped"] * 3
    for late in (
        lambda: engine.open({}),
        lambda: engine.push(id, picture(0)),
        lambda: engine.ask(id, "What?", Asking(), Listener()),
        lambda: engine.chat([{"role": "user", "content": "What?"}], Asking(), Listener()),
    ):
        with pytest.raises(Overloaded, match="going down"):
            late()
    engine.cancel("answer-0")
    engine.close()


def test_memory_stays_the_same(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Frames and questions: no tensor of the pool is replaced, nothing waits in the end, norms are thinned."""
    monkeypatch.setattr("infinitevl.engine.records.MOST_NORMS", 64)
    with running(random_model(0, sliding_window=48).to(model.device)) as engine:  # whose layers are two blocks
        id = engine.open({}, fps=None)
        before = {name: tensor.data_ptr() for name, tensor in engine._pool.state.tensors().items()}
        for k in range(5):
            watch(engine, id, [picture(t, 28, 28) for t in range(20)], start=20 * k)
            ask(engine, id, max_tokens=2)
        assert {name: tensor.data_ptr() for name, tensor in engine._pool.state.tensors().items()} == before
        assert engine.load() == {"streams": 1, "slots": 1, "answers": 0, "waiting_frames": 0}
        norms = engine.norms(id)
        assert norms.layers == [1, 2, 3, 5, 6, 7]
        assert norms.times == [*np.arange(0, 32, 1.0), *np.arange(32, 50, 1.0)]
        assert {len(row) for row in norms.norms} == {6}
        assert all(value > 0 for row in norms.norms for value in row)
