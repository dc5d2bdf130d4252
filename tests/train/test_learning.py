"""A micro training must learn: in a quarter of a minute, a small hybrid learns to repeat digits it has never seen."""

from pathlib import Path
from statistics import fmean

import torch
from train_kit import TINY, Listed, encoder, stage

from infinitevl.data.packing import Batch, pack
from infinitevl.data.sample import Sample
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.processing import InfiniteVLProcessor
from infinitevl.model.random_model import random_config
from infinitevl.train.keeping import METRICS, read_metrics
from infinitevl.train.loop import Settings, train_stage
from infinitevl.train.tokenizer import train_tokenizer

STEPS, ROWS, TURNS, DIGITS = 170, 8, 8, 3
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
    text = {**TINY, "hidden_size": 64, "sliding_window": 64, "layer_types": KINDS, "num_hidden_layers": len(KINDS)}
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


def repeated(model: Model) -> int:
    """How many of 20 new words it repeats, answering by itself, in the second turn of a conversation."""
    asked, (before,) = words(10**6, 20), words(0, 1)
    processor, right = model.processor, 0
    for word in asked:
        prompt = f"{turn('system', '')}{turn('user', before)}{turn('assistant', before)}{turn('user', word)}"
        ids = torch.tensor([processor.encode(f"{prompt}<|im_start|>assistant\n")])
        found = model.generate(ids, max_new_tokens=DIGITS + 1, do_sample=False)[0, ids.shape[1] :]
        right += processor.tokenizer.decode(found, skip_special_tokens=True) == word
    return right


def turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"
