"""A micro training must learn: in a quarter of a minute, a small hybrid learns to repeat digits it has never seen.

It does so from its memory: they have left the attention window when they are asked for.
"""

from pathlib import Path
from statistics import fmean

import torch
from train_kit import TINY, Listed, encoder, stage

from infinitevl.data.packing import Batch, pack
from infinitevl.data.sample import Sample
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.processing import InfiniteVLProcessor
from infinitevl.model.random_model import random_config
from infinitevl.model.state import DeltaState, State
from infinitevl.train.keeping import METRICS, read_metrics
from infinitevl.train.loop import Settings, train_stage
from infinitevl.train.tokenizer import train_tokenizer

STEPS, ROWS, TURNS, DIGITS = 170, 8, 8, 3
WINDOW = 4  # the end of a turn and the beginning of the next are 5 tokens
KINDS = ["linear_attention", "sliding_attention"]
GUESSING = 1.73  # 3 of 4 tokens are one of ten digits: 3/4 ln 10


def words(seed: int, count: int) -> list[str]:
    drawn = torch.randint(10, (count, DIGITS), generator=torch.Generator().manual_seed(seed)).tolist()
    return ["".join(map(str, digits)) for digits in drawn]


class Echo(Listed):
    """Conversations in which the assistant repeats what the user says."""

    def __init__(self, model: Model) -> None:
        self.encode, self.steps = encoder(model), STEPS

    def __getitem__(self, step: int) -> Batch:
        rows = [[self.encode(self._talk(step * ROWS + row))] for row in range(ROWS)]
        return pack(rows, max(len(sample) for row in rows for sample in row))

    def _talk(self, seed: int) -> Sample:
        said = [{"role": role, "content": w} for w in words(seed, TURNS) for role in ("user", "assistant")]
        return Sample([{"role": "system", "content": ""}, *said])


def new_model() -> Model:
    processor = InfiniteVLProcessor(train_tokenizer(400, conversations=40))
    text = {**TINY, "hidden_size": 64, "sliding_window": WINDOW, "layer_types": KINDS, "num_hidden_layers": len(KINDS)}
    torch.manual_seed(0)
    model = Model(random_config(processor, **{**text, "intermediate_size": 128}))
    model.processor = processor
    return model


def test_it_learns(tmp_path: Path):
    model = new_model()
    kind = stage(steps=STEPS, rows=ROWS, learning_rate=3e-3)
    train_stage(kind, model, None, Echo(model), tmp_path, Settings()).eval()
    losses = [point.loss for point in read_metrics(tmp_path / METRICS)]
    assert losses[0] > 5
    assert fmean(losses[-10:]) < GUESSING / 5
    assert repeated(model) >= 16
    assert repeated(model, forgets=True) <= 2


@torch.no_grad()
def repeated(model: Model, forgets: bool = False) -> int:
    """How many of 20 new words it repeats, answering by itself, in the second turn of a conversation.

    forgets: its memory is emptied behind the word.
    """
    asked, (before,) = words(10**6, 20), words(0, 1)
    processor, right = model.processor, 0
    for word in asked:
        said = f"{turn('system', '')}{turn('user', before)}{turn('assistant', before)}<|im_start|>user\n{word}"
        state = model.allocate_state()
        model(torch.tensor([processor.encode(said)]), past_key_values=state)
        if forgets:
            forget(state)
        fed, answer = processor.encode("<|im_end|>\n<|im_start|>assistant\n"), list[int]()
        assert len(fed) > WINDOW
        for _ in range(DIGITS):
            fed = [int(model(torch.tensor([fed]), past_key_values=state).logits[0, -1].argmax())]
            answer += fed
        right += processor.tokenizer.decode(answer) == word
    return right


def forget(state: State) -> None:
    for layer in state.layers:
        if isinstance(layer, DeltaState):
            layer.memory.zero_()
            layer.tail.zero_()


def turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"
