"""Variants of a stream are what separate streams would be, and what emptying the memory proves."""

from collections.abc import Sequence

import pytest
import torch

from helpers import assert_close, randomise
from infinitevl.data.streamworld import Question
from infinitevl.evaluation.feeding import Notes
from infinitevl.evaluation.lockstep import Lockstep
from infinitevl.evaluation.plan import PLAIN
from infinitevl.evaluation.run import narrowed
from infinitevl.evaluation.scores import Ask, Cell, Tally
from infinitevl.evaluation.watching import Norm, Pool, Variant, Watch, mean_norms, reach
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model

WINDOW = 3  # frames of 2 tokens
AMNESIC, RESET = Variant("amnesic", every=WINDOW), Variant("reset", edge=WINDOW)
FADING = Variant("fading", every=2, factor=0.5)
KINDS = ["sliding_attention", "linear_attention", "linear_attention", "sliding_attention", "linear_attention"]


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    made = random_model(0, sliding_window=2 * WINDOW, num_hidden_layers=5, layer_types=KINDS)
    randomise(made)
    return made.double()  # what is rounded to float32 depends on the number of rows


def frames(streams: int, count: int) -> torch.Tensor:
    return torch.randint(256, (streams, count, 56, 28, 3), dtype=torch.uint8)


def ask(text: str) -> Ask:
    return Ask(Cell("memory", "recall"), Question("recall", "card", text, "12", 0, 0.0, 0, 0, 0, 0, 0.0, False))


class Kept(Pool):
    """Keeps the memory of the streams asked, instead of answers."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], list[torch.Tensor]] = {}

    def add(self, streams: Lockstep, rows: list[int], asks: list[Ask]) -> None:
        for row, asked in zip(rows, asks, strict=True):
            key = asked.question.question, asked.cell.variant
            assert key not in self.states
            self.states[key] = list(streams.take([row]).state.tensors().values())


def alone(model: Model, shown: torch.Tensor, variant: Variant) -> list[torch.Tensor]:
    """The state after all of these frames [1, n, ...], one by one."""
    stream = Lockstep(model, 1, 10.0)
    for index in range(shown.shape[1]):
        if variant.every and index and index % variant.every == 0:
            stream.fade(variant.factor)
        if variant.edge and index == shown.shape[1] - variant.edge:
            stream.fade(0.0)
        stream.see(shown[:, index : index + 1])
    return list(stream.state.tensors().values())


@pytest.mark.parametrize("pieces", [[11], [4, 1, 6]])
def test_every_variant_is_a_stream_of_its_own(model: Model, pieces: list[int]):
    """Questions of two streams fall due at different frames, two of them in windows that overlap."""
    shown, due = frames(2, 11), {(0, 6), (0, 8), (1, 8), (1, 10)}
    pool = Kept()
    watch = Watch(model, 2, (PLAIN, AMNESIC, FADING, RESET), pool)
    start = 0
    for piece in shown.split(pieces, dim=1):
        inside = range(start, start + piece.shape[1])
        asks = [(index - start, stream, ask(f"{stream} {index}")) for stream, index in due if index in inside]
        edges = [(index - start, stream) for stream, frame in due if (index := frame - WINDOW + 1) in inside]
        watch.see(piece, Notes(asks, edges))
        start = inside.stop
    assert len(pool.states) == len(due) * 4
    assert len(watch.rows) == 6
    for stream, index in due:
        for variant in (PLAIN, AMNESIC, FADING, RESET):
            expected = alone(model, shown[stream : stream + 1, : index + 1], variant)
            for found, tensor in zip(pool.states[f"{stream} {index}", variant.name], expected, strict=True):
                assert_close(found, tensor, 1e-5)


def influence(model: Model, variant: Variant, after: int) -> float:
    """How much the state of a stream of `after` frames depends on its first frame: 0 where it does not."""
    shown = frames(1, after)
    other = shown.clone()
    other[:, 0] = 255 - other[:, 0]
    pairs = zip(alone(model, shown, variant), alone(model, other, variant), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def test_what_an_amnesic_stream_can_know(model: Model):
    """Two attention layers and two runs of Gated DeltaNet: nothing older than 4 windows, to the last bit."""
    horizon = reach(KINDS) * WINDOW
    assert reach(KINDS) == 4
    assert influence(model, PLAIN, horizon + 1) > 0
    assert influence(model, RESET, horizon + 1) > 0  # it comes back from the attention windows
    assert influence(model, AMNESIC, WINDOW + 1) > 0
    assert [influence(model, AMNESIC, horizon + extra) for extra in (0, 1, 2, 5)] == [0.0] * 4


def test_norms(model: Model):
    watch = Watch(model, 2, (PLAIN, AMNESIC), Pool(Tally(), 8), marks=(1, 2, 4, 64))
    shown = frames(2, 6)
    watch.see(shown, Notes())
    assert [(norm.variant, norm.frames) for norm in watch.norms] == [
        (name, count) for count in (1, 2, 4) for name in ("model", "amnesic")
    ]
    stream = Lockstep(model, 2, 10.0)
    stream.see(shown[:, :4])
    assert watch.norms[4].layers == pytest.approx(stream.memory_norm().mean(1).tolist(), rel=1e-4)
    assert watch.norms[3].layers == pytest.approx(watch.norms[2].layers, rel=1e-4)
    assert watch.norms[5].layers != pytest.approx(watch.norms[4].layers, rel=1e-2)


def test_a_pool_answers_as_the_streams_do(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Each question of the row it was added for, at the moment at which it was added, in batches of one size."""
    found: list[tuple[str, str]] = []
    together, answer = list[int](), Lockstep.answer

    def answered(streams: Lockstep, questions: Sequence[str], most: int) -> list[str]:
        together.append(len(questions))
        return answer(streams, questions, most)

    class Heard(Tally):
        def count(self, ask: Ask, answer: str) -> None:
            found.append((ask.question.question, answer))

    shown, texts = frames(3, 3), ["What is it?", "Which number did the red star card show?", "Why", "How many?"]
    stream = Lockstep(model, 3, 10.0)
    stream.see(shown[:, :2])
    answers = [stream.ask([text] * 3, max_new_tokens=4) for text in texts]
    pool = Pool(Heard(), limit=3)
    pool.add(stream, [2, 0], [ask(texts[0]), ask(texts[1])])
    stream.see(shown[:, 2:])
    assert not found
    last = stream.ask([texts[3]] * 3, max_new_tokens=4)
    monkeypatch.setattr(Lockstep, "answer", answered)
    pool.add(stream, [1, 1, 0, 2, 1], [ask(texts[3])] * 5)
    assert len(found) == 6
    pool.flush()
    expected = [answers[0][2], answers[1][0], *(last[i] for i in (1, 1, 0, 2, 1))]
    assert found == list(zip([*texts[:2], *[texts[3]] * 5], expected, strict=True))
    assert together == [3, 3, 1]


def test_a_narrow_model():
    narrow = narrowed(random_model(0, sliding_window=64, num_hidden_layers=2))
    assert narrow.config.text_config.sliding_window == 16
    assert narrow.allocate_state(1).tensors()["layers.0.keys"].shape[2] == 16
    assert narrow.processor.encode("x")
    attention = narrow.model.language_model.layers[0].self_attn
    assert attention.window == 16


def test_norms_of_batches_are_means_over_streams():
    found = [(Norm("a", 8, [1.0, 4.0]), 3), (Norm("b", 8, [5.0]), 2), (Norm("a", 8, [2.0, 0.0]), 1)]
    assert mean_norms(found) == [Norm("a", 8, [1.25, 3.0]), Norm("b", 8, [5.0])]
