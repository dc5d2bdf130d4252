"""Every variant is a whole model: it converts, trains on the losses of its stages, and streams."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from train_kit import backward_step, clip, mixed_batch, small_model

from helpers import assert_close
from infinitevl.errors import InfiniteVLError
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.train.ablation_report import cells, markdown, rows, terminal, write
from infinitevl.train.ablations import CHAIN, VARIANTS, Measured, Result, Variant, choose, new_student
from infinitevl.train.recipes import micro, nano
from infinitevl.train.stages import select

LAYERS = 5
NAMED = {variant.name: variant for variant in VARIANTS}


@pytest.fixture(scope="module")
def teacher() -> Model:
    return small_model(["full_attention"] * LAYERS, num_attention_heads=4)


def student(variant: Variant, teacher: Model, folder: Path) -> Model:
    folder.mkdir(exist_ok=True)
    return new_student(variant, replace(micro(), window=16), teacher, folder)


def kinds(name: str, layers: int = 9) -> str:
    """s for sliding, l for linear, f for full attention."""
    return "".join(kind[0] for kind in NAMED[name].layer_types(layers))


def test_layers():
    assert kinds("baseline") == "slllsllls"
    assert kinds("attention-0") == "lllllllll"
    assert kinds("attention-1-8") == "sllllllls"
    assert kinds("attention-full") == "fffffffff"
    assert {kinds(name) for name in ("no-distillation", "no-sft", "gated", "plain", "random-start")} == {"slllsllls"}


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_all_take_as_many_steps(variant: Variant, long: bool):
    recipe = nano()
    stages = variant.stages(recipe, long)
    steps = {stage.name: stage.steps for stage in recipe.stages}
    assert [stage.name for stage in stages] == [n for n in (*CHAIN, *["long"] * long) if n not in variant.skipped]
    assert sum(stage.steps for stage in stages) == sum(steps[name] for name in (*CHAIN, *["long"] * long))
    kept = [replace(stage, steps=steps[stage.name]) for stage in stages]
    assert all(stage in recipe.stages for stage in kept)
    assert not long or stages[-1] == recipe.stages[-1]


def test_choosing():
    assert choose("", 8) == VARIANTS
    assert [variant.name for variant in choose("gated,baseline,gated", 8)] == ["gated", "baseline"]
    assert "attention-1-8" not in [variant.name for variant in choose("", 4)]  # the baseline has as few
    with pytest.raises(InfiniteVLError, match="no variant mamba: there are baseline, no-distillation"):
        choose("baseline,mamba", 8)
    with pytest.raises(InfiniteVLError, match="attention-1-8 needs 8 layers: this model has 4"):
        choose("attention-1-8", 4)
    with pytest.raises(InfiniteVLError, match="recipe micro has no stage long"):
        VARIANTS[0].stages(replace(micro(), stages=micro().stages[:-1]), True)


@pytest.mark.parametrize("name", [name for name in NAMED if name not in ("no-distillation", "no-sft")])
def test_a_variant_trains_and_streams(name: str, teacher: Model, tmp_path: Path):
    variant = NAMED[name]
    model = student(variant, teacher, tmp_path)
    text = model.config.text_config
    assert (text.layer_types, text.linear_rule) == (variant.layer_types(LAYERS), variant.rule)
    batch = mixed_batch(model)
    for stage in variant.stages(micro(), False):
        select(model, stage.trains)
        loss = backward_step(stage, model, teacher if stage.needs_teacher else None, batch)
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        assert loss.isfinite() and loss > 0 and torch.stack(norms).isfinite().all() and max(norms) > 0
        model.zero_grad()
    one_by_one(model.eval())
    watch(model)


@torch.no_grad()
def one_by_one(model: Model) -> None:
    """A stream of single tokens, far beyond the window, gives what one pass gives."""
    ids, state = torch.randint(200, (2, 50)), model.allocate_state(2)
    expected = model(ids).logits
    found = torch.cat([model(ids[:, i : i + 1], past_key_values=state).logits for i in range(50)], dim=1)
    assert_close(found, expected, 1e-4)
    assert state.count.tolist() == state.position.tolist() == [50, 50]


def watch(model: Model) -> None:
    stream = model.stream()
    for frame in clip(4, 56, 56):
        stream.see(frame.numpy())
    assert len("".join(stream.ask("What?", max_new_tokens=3))) >= 0
    assert stream.stats.frames == 4


def test_the_rules_differ_in_the_layer_alone(teacher: Model, tmp_path: Path):
    """The same weights, and other logits."""
    models = {name: student(NAMED[name], teacher, tmp_path / name) for name in ("baseline", "gated", "plain")}
    expected, ids = models["baseline"].state_dict(), torch.randint(200, (1, 30))
    for name, model in models.items():
        assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items()), name
    with torch.no_grad():
        a, b, c = (model(ids).logits for model in models.values())
    assert min((a - b).abs().max(), (b - c).abs().max(), (a - c).abs().max()) > 1e-3


def test_a_random_start_inherits_all_but_the_linear_layers(teacher: Model, tmp_path: Path):
    seeded, fresh = (student(NAMED[name], teacher, tmp_path / name) for name in ("baseline", "random-start"))
    expected = seeded.state_dict()
    other = {
        name.split("self_attn.")[-1] for name, tensor in fresh.state_dict().items() if not tensor.equal(expected[name])
    }
    assert other == {f"{x}_{kind}.weight" for kind, names in (("proj", "qkvo"), ("conv1d", "qkv")) for x in names}
    drawn = fresh.state_dict()["model.language_model.layers.2.self_attn.o_proj.weight"]
    assert drawn.std().item() == pytest.approx(0.02, rel=0.05)


def result(variant: str, seed: int, right: int, diverged: str = "") -> Result:
    scores = [] if diverged else [Measured("read", 10, right, 0.1), Measured("recall", 10, 1, 0.01)]
    return Result(
        variant, seed, diverged, {"layerwise": 0.5} if diverged else {"layerwise": 0.5, "sft": 0.1 * right}, scores
    )


def test_the_table(tmp_path: Path):
    results = [result("baseline", 0, 9), result("baseline", 1, 7), result("plain", 0, 0, "sft, step 3")]
    first, second = rows(results)
    assert (first.accuracy["read"].mean, first.accuracy["read"].spread) == pytest.approx((0.8, 0.1 * 2**0.5))
    assert (second.accuracy, second.diverged) == ({}, ["sft, step 3"])
    assert cells(results) == (
        ["variant", "read", "recall", "I a", "II", "seeds"],
        [
            ["chance", "10.0", "1.0", "", "", ""],
            ["baseline", "80.0 ± 14.1", "10.0 ± 0.0", "0.500 ± 0.000", "0.800 ± 0.141", "2"],
            ["plain", "-", "-", "0.500", "-", "1"],
        ],
    )
    assert "| plain | - | - | 0.500 | - | 1 |" in markdown(results)
    assert f"- plain: {NAMED['plain'].about}; diverged at sft, step 3" in markdown(results)
    console = Console(width=80, record=True, file=StringIO())
    console.print(terminal(results))
    shown = console.export_text()
    assert "…" not in shown and "80.0" in shown and "plain diverged: sft, step 3" in shown
    write(results, tmp_path)
    assert (tmp_path / "ablations.png").stat().st_size > 5_000
    assert not (tmp_path / "losses.png").exists()
    write(results[2:], tmp_path / "diverged")
    assert not (tmp_path / "diverged" / "ablations.png").exists()
