"""The whole model on a GPU, as it runs there: what the authors' implementation computed, one function of the tokens
however they are fed, from an empty ring to three windows and to a million tokens."""

import copy
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers import assert_close, assert_same_state, even, feed, randomise, relative, text_ids, tiny_model
from infinitevl import ops
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.random_model import random_model
from infinitevl.streaming.feeding import take_text
from infinitevl.streaming.stream import Stream
from interpreter import DEVICE

TOLERANCE = 1e-4  # Frobenius, relative, float32
WINDOW = 96
SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "head_dim": 64, "num_linear_heads": 2,
    "linear_head_dim": 64, "sliding_window": WINDOW, "attention_sinks": 3,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
}  # fmt: skip
FAR = 2**20


@pytest.fixture(autouse=True)
def no_grad():
    with torch.inference_mode():
        yield


def small(dtype: torch.dtype) -> Model:
    """Of head sizes that every kernel takes."""
    torch.manual_seed(1)
    return tiny_model(dtype=dtype, **SIZES).cuda()


def frames_model() -> Model:
    """With a vision tower, and a processor."""
    made = random_model(0, sliding_window=WINDOW)
    randomise(made)
    return made.to(DEVICE)


def picture(seed: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def ids(*shape: int) -> Tensor:
    return text_ids(*shape).cuda()


def exact(model: Model, tokens: Tensor) -> Tensor:
    """The logits of one prompt in float64, step by step."""
    with ops.using("eager"):
        return copy.deepcopy(model).double()(tokens).logits


@pytest.mark.parametrize("size", [1, 32, 37, 128])
def test_chunks_are_one_prompt(size: int):
    """float32, two rows, from empty to past three windows."""
    model, tokens = small(torch.float32), ids(2, 3 * WINDOW + 19)
    found = feed(model, tokens, model.allocate_state(2), even(tokens.shape[1], size))
    assert_close(found, exact(model, tokens), TOLERANCE)


@pytest.mark.parametrize("size", [1, 32, 256])
def test_no_less_exact_than_eager(size: int):
    """bfloat16, at every fill level; a chunk of 256 is longer than the window."""
    model, tokens = small(torch.bfloat16), ids(2, 3 * WINDOW + 19)
    expected, errors = exact(model, tokens), {}
    for name, context in {"kernels": nullcontext(), "eager": ops.using("eager")}.items():
        with context:
            found = feed(model, tokens, model.allocate_state(2), even(tokens.shape[1], size))
        errors[name] = relative(found, expected)
    assert errors["kernels"] <= 1.5 * errors["eager"], errors


def test_frames_no_less_exact_than_eager():
    """bfloat16, frames and questions that replay graphs, from an empty window to three of them: all that would be
    answered together."""
    narrow = frames_model().bfloat16()
    models = {"graphs": narrow, "eager": narrow, "exact": copy.deepcopy(narrow).double()}
    streams = {name: Stream(model, fps=None) for name, model in models.items()}
    asked, answers = text_ids(1, 9)[0].tolist(), {name: list[Tensor]() for name in models}
    for seed in range(3 * WINDOW // 16 + 1):
        for name, stream in streams.items():
            with nullcontext() if name == "graphs" else ops.using("eager"):
                stream.see(picture(seed, 112))
                answers[name].append(take_text(models[name], stream.fork().state, [asked]).double())
    found = {name: torch.cat(logits) for name, logits in answers.items()}
    errors = {name: relative(found[name], found["exact"]) for name in ("graphs", "eager")}
    assert errors["graphs"] <= errors["eager"], errors


def test_rows_are_alone():
    """Rows at different places in their streams, in one batch, with padding."""
    model, lengths = small(torch.float32), torch.tensor([37, 5, 0, 256 + 9], device="cuda")
    state, before, after = model.allocate_state(4), ids(4, 265), ids(4, 8)
    mask = torch.arange(265, device="cuda") < lengths[:, None]
    model(before, attention_mask=mask.long(), past_key_values=state)
    found = model(after, past_key_values=state).logits
    for row, length in enumerate(lengths.tolist()):
        alone = model.allocate_state(1)
        if length:
            model(before[row : row + 1, :length], past_key_values=alone)
        assert_close(found[row : row + 1], model(after[row : row + 1], past_key_values=alone).logits, TOLERANCE)
        assert_same_state(state.take([row]), alone, TOLERANCE)


def test_a_million_tokens():
    """In chunks of 256 tokens from one graph: memory is flat to the byte, and the last are as exact as the first."""
    model = small(torch.float32)
    state, tokens, used = model.allocate_state(1), ids(1, 256), set()

    def step() -> Tensor:
        return model(tokens, past_key_values=state).logits

    step()
    state.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step()
    for chunk in range(FAR // 256):
        tokens.random_(90)
        graph.replay()
        if chunk % 512 == 0:
            used.add(torch.cuda.memory_allocated())
    assert len(used) == 1
    assert int(state.count) == FAR == int(state.position)
    assert logits.isfinite().all()
    tokens.random_(90)
    other = state.fork()
    graph.replay()
    with ops.using("eager"):
        assert_close(logits, model(tokens, past_key_values=other).logits, TOLERANCE)
    assert_same_state(state, other, TOLERANCE)


def test_a_million_tokens_of_frames():
    """Through a stream, from its graphs: memory is flat to the byte, and the last frame as exact as the first."""
    model, used = frames_model(), set()
    stream = Stream(model, fps=None, max_pixels=448**2)
    frames = [picture(seed, 448) for seed in range(8)]
    for number in range(FAR // 256):
        stream.see(frames[number % 8])
        if number % 512 == 8:
            torch.cuda.synchronize()
            used.add(torch.cuda.memory_allocated())
    assert len(used) == 1
    assert stream.stats.tokens >= FAR and int(stream.state.count) == stream.stats.tokens
    other = stream.fork()
    stream.see(frames[0])
    with ops.using("eager"):
        other.see(frames[0])
    assert_same_state(stream.state, other.state, TOLERANCE)


def test_golden_stream(shared: Path):
    """Frames one by one into a carried state, a question, greedy decoding; float32."""
    folder = shared / "golden" / "reference_a"
    model = Model.from_pretrained(folder).cuda().eval()
    cases = {name: tensor.cuda() for name, tensor in load_file(folder / "cases.safetensors").items()}
    assert_close(model(cases["text.input_ids"], logits_to_keep=64).logits, cases["text.logits_tail"], TOLERANCE)
    case = {name.removeprefix("stream."): tensor for name, tensor in cases.items() if name.startswith("stream.")}
    state, tokens, positions = model.allocate_state(), case["first_ids"], case["positions_first"]
    for frame, expected in enumerate(case["hidden"]):
        out = model(
            tokens, pixel_values=case["frames"][frame], image_grid_thw=case["grid_thw"], position_ids=positions,
            past_key_values=state, output_hidden_states=True,
        )  # fmt: skip
        assert_close(out.hidden_states[-1][0, -16:], expected, TOLERANCE)
        tokens, positions = case["first_ids"][:, 1:], case["positions_rest"][min(frame, 14)]
    logits = model(case["question_ids"], past_key_values=state).logits
    assert_close(logits, case["question_logits"], TOLERANCE)
    for expected in case["greedy_tokens"][0]:
        token = logits[:, -1:].argmax(-1)
        assert int(token) == int(expected)
        logits = model(token, past_key_values=state).logits
    assert_close(logits, case["decode_logits"][:, -1:], TOLERANCE)
