"""The report of a run: its numbers are those of metrics.jsonl, and its operations those counted by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infinitevl.data.encode import IGNORED
from infinitevl.data.files import FilePart
from infinitevl.data.worlds import Part
from infinitevl.train import report
from infinitevl.train.flops import LONGEST_ROW, countable, flops_per_token, one_row, peak
from infinitevl.train.keeping import METRICS, Point
from infinitevl.train.pipeline import new_teacher
from infinitevl.train.recipes import Recipe, micro
from infinitevl.train.report import Aim, Device, Report, clock, draw_losses, markdown, told_stages, write

RATES = (50.0, 100.0, 200.0)  # tokens per second, of 100 tokens each
H200 = Device("NVIDIA H200", 2, 989e12)


def two_stages() -> Recipe:
    recipe = micro()
    return replace(recipe, stages=recipe.stages[:2], vocabulary=400)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A teacher of three steps, and a stage of none."""
    points = [Point(i + 1, 3.0 - i, 1e-3, 1.0, 100 * (i + 1), rate) for i, rate in enumerate(RATES)]
    for name, lines in (("teacher", points), ("layerwise", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / METRICS).write_text("".join(point.line() for point in lines))
    return tmp_path


def test_numbers_are_those_of_the_metrics(out: Path):
    (told,) = told_stages(two_stages().stages, out, {"teacher": 1e9, "layerwise": None}, H200)
    assert (told.name, told.steps, told.tokens, told.seconds) == ("teacher", 3, 300, 2.0 + 1.0 + 0.5)
    assert told.tokens_per_second == pytest.approx(300 / 3.5)
    assert told.loss == 2.0
    assert told.flops_per_second == pytest.approx(1e9 * 300 / 3.5)
    assert told.utilisation == pytest.approx(1e9 * 300 / 3.5 / (2 * 989e12))


def test_the_final_loss_is_of_the_last_steps():
    points = [Point(i, 100.0 if i <= 5 else 1.0, 1e-3, 1.0, i, 1.0) for i in range(1, 6 + report.LAST)]
    assert report.tell(micro().stages[0], points, None, H200).loss == 1.0


def test_what_is_not_known_is_left_out(out: Path):
    unknown = {"teacher": None, "layerwise": None}
    (told,) = told_stages(two_stages().stages, out, unknown, H200)
    assert (told.flops_per_second, told.utilisation) == (None, None)
    (told,) = told_stages(two_stages().stages, out, {**unknown, "teacher": 1e9}, Device("CPU"))
    assert told.utilisation is None
    text = markdown(Report("tiny", Device("CPU"), [told], [], {}, None))
    assert "| teacher | cross entropy | 3 | 300 | 3.5 | 86 | 2 | 1,000.0 | 0.0857 |  |" in text
    assert "not known" in text
    assert "Nothing was evaluated" in text
    assert peak(torch.device("cpu")) is None


def test_aims_and_figures(out: Path):
    aims = [
        Aim("read", "at least 97%", 98.0, "98.0%", True),
        Aim("see", "at least 97%", 90.0, "90.0%", False, "see: 7 points short."),
        Aim("far", "measured", 50.0, "50.0%"),
    ]
    stages = told_stages(two_stages().stages, out, {"teacher": None, "layerwise": None}, H200)
    found = Report("tiny", H200, stages, aims, {"Losses": "losses.png"}, 65.0)
    path = write(found, out)
    assert path == out / "report.md"
    text = path.read_text()
    assert text.startswith("# tiny\n\n1 min 08 s on 2 x NVIDIA H200: 4 s of training, 1 min 05 s of evaluation.\n")
    assert "| read | at least 97% | 98.0% | yes |" in text
    assert "| see | at least 97% | 90.0% | no |" in text
    assert "| far | measured | 50.0% |  |" in text
    assert "Missed:\n\n- see: 7 points short.\n" in text
    assert "![Losses](losses.png)" in text
    numbers = json.loads((out / "report.json").read_text())
    assert (numbers["training_seconds"], numbers["seconds"], numbers["stages"][0]["tokens"]) == (3.5, 68.5, 300)


def test_losses_are_drawn(out: Path, monkeypatch: pytest.MonkeyPatch):
    assert draw_losses(["teacher"], out)
    assert (out / "losses.png").stat().st_size > 5_000
    assert not draw_losses([], out)
    (out / "losses.png").unlink()
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert not draw_losses(["teacher"], out)
    assert not (out / "losses.png").exists()


def test_operations_are_those_counted_by_hand(tmp_path: Path):
    """6 for every weight and token; the head's product is made twice; attention scores the whole square."""
    recipe = two_stages()
    stage = replace(recipe.stages[0], data=(Part(1.0, "text", questions=4),), tokens=200)
    model = new_teacher(recipe, tmp_path / "processor", torch.device("cpu"))
    batch = one_row(recipe, stage, model)
    text, layers = model.config.text_config, model.model.language_model.layers
    weights = sum(parameter.numel() for parameter in layers.parameters() if parameter.dim() == 2)
    attention = 12 * stage.tokens**2 * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    head = 8 * int((batch.targets != IGNORED).sum()) * text.hidden_size * text.vocab_size
    found = flops_per_token(recipe, stage, model, None)
    assert found == pytest.approx((6 * weights * stage.tokens + attention + head) / batch.tokens, rel=0.01)

    assert flops_per_token(recipe, replace(stage, trains="language"), model, None) == pytest.approx(found, rel=0.01)
    assert one_row(recipe, replace(stage, tokens=4 * LONGEST_ROW), model).ids.shape == (1, LONGEST_ROW)
    assert countable(stage)
    assert not countable(replace(stage, data=(FilePart(1.0, "nowhere"),)))


@pytest.mark.parametrize(("seconds", "told"), [(41.2, "41 s"), (59.9, "1 min 00 s"), (125, "2 min 05 s")])
def test_clock(seconds: float, told: str):
    assert clock(seconds) == told
    assert clock(seconds + 3600).startswith("1 h 0")
