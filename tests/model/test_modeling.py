"""The Hugging Face face: generate, losses, training with and without a state, adapters, errors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import HYBRID, IMAGE, MIXED, TEXT_IDS, VIDEO, VOCABULARY, assert_close, relative, text_ids, tiny_model
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Model
from infinitevl.model.state import State

NEW = 12
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": list(range(TEXT_IDS, VOCABULARY))}


@pytest.fixture(params=[HYBRID, MIXED], ids=["hybrid", "mixed"])
def model(request: pytest.FixtureRequest) -> Model:
    return tiny_model(request.param, attention_sinks=2)


def picture_prompts() -> dict[str, Tensor]:
    """Two rows, left padded: an image and a video; two images of other sizes."""
    first = torch.cat([text_ids(5), torch.full((6,), IMAGE), text_ids(3), torch.full((8,), VIDEO), text_ids(4)])
    second = torch.cat([text_ids(2), torch.full((4,), IMAGE), text_ids(2), torch.full((9,), IMAGE), text_ids(3)])
    short = len(first) - len(second)
    return {
        "input_ids": torch.stack([first, torch.cat([text_ids(short), second])]),
        "attention_mask": (torch.arange(len(first)) >= torch.tensor([[0], [short]])).long(),
        "pixel_values": torch.randn(4 * (6 + 4 + 9), 1176),
        "image_grid_thw": torch.tensor([[1, 4, 6], [1, 4, 4], [1, 6, 6]]),
        "pixel_values_videos": torch.randn(4 * 8, 1176),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }  # fmt: skip


def rows_alone(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    first = {name: batch[name][:1] for name in ("input_ids", "video_grid_thw")}
    first |= {"pixel_values": batch["pixel_values"][:24], "image_grid_thw": batch["image_grid_thw"][:1]}
    second = {"input_ids": batch["input_ids"][1:, batch["attention_mask"][1] == 1]}
    second |= {"pixel_values": batch["pixel_values"][24:], "image_grid_thw": batch["image_grid_thw"][1:]}
    return [{**first, "pixel_values_videos": batch["pixel_values_videos"]}, second]


@torch.no_grad()
def loop(model: Model, **prompt: Tensor) -> Tensor:
    """Greedy decoding by hand."""
    out, tokens = model(**prompt, use_cache=True), []
    for _ in range(NEW):
        tokens.append(out.logits[:, -1:, :TEXT_IDS].argmax(-1))
        out = model(tokens[-1], past_key_values=out.past_key_values)
    return torch.cat(tokens, 1)


def new_tokens(model: Model, prompt: dict[str, Tensor], **options: object) -> Tensor:
    return model.generate(**prompt, **{**GREEDY, **options})[:, prompt["input_ids"].shape[1] :]


def test_greedy_equals_a_loop(model: Model):
    ids = text_ids(2, 40)
    expected = loop(model, input_ids=ids)
    assert len(set(expected.flatten().tolist())) > 4
    assert torch.equal(new_tokens(model, {"input_ids": ids}), expected)
    assert torch.equal(new_tokens(model, {"input_ids": ids}, use_cache=False), expected)


@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"num_beams": 3}, {"num_beams": 3, "use_cache": False}], ids=str
)
@pytest.mark.parametrize("pictures", [False, True])
def test_padded_batch_equals_rows_alone(model: Model, pictures: bool, options: dict):
    if pictures:
        batch = picture_prompts()
        rows = rows_alone(batch)
    else:
        batch = {"input_ids": text_ids(2, 40), "attention_mask": torch.ones(2, 40).long()}
        batch["attention_mask"][0, :17] = 0
        rows = [{"input_ids": batch["input_ids"][:1, 17:]}, {"input_ids": batch["input_ids"][1:]}]
    found = new_tokens(model, batch, **options)
    expected = torch.cat([new_tokens(model, row, **options) for row in rows])
    assert torch.equal(found, expected)
    if not options:
        assert torch.equal(found, torch.cat([loop(model, **row) for row in rows]))


@pytest.mark.parametrize("row", [None, 0, 1], ids=["text", "image and video", "two images"])
def test_beams_are_scored_as_the_model_does(model: Model, row: int | None):
    """The reported score of every beam is the mean log-probability of its tokens, computed in one pass."""
    prompt = {"input_ids": text_ids(1, 30)} if row is None else rows_alone(picture_prompts())[row]
    options = {"num_beams": 4, "num_return_sequences": 4, "return_dict_in_generate": True, "output_scores": True}
    out, scores = model.generate(**prompt, **GREEDY, **options), []
    for ids in out.sequences[:, None]:
        with torch.no_grad():
            logits = model(**{**prompt, "input_ids": ids}).logits[:, -NEW - 1 : -1]
        scores.append(logits.log_softmax(-1).gather(2, ids[:, -NEW:, None]).mean())
    assert_close(out.sequences_scores, torch.stack(scores), 1e-5)
    assert len(out.sequences.unique(dim=0)) == 4


def test_generate_continues_a_state(model: Model):
    """New tokens with a mask over old and new ones, or all tokens."""
    old, new = text_ids(2, 40), text_ids(2, 6)
    everything = {"input_ids": torch.cat([old, new], 1)}
    expected, state = loop(model, **everything), model.allocate_state(2)
    with torch.no_grad():
        model(old, past_key_values=state)
    mask = torch.ones(2, 46).long()
    found = new_tokens(model, {"input_ids": new, "attention_mask": mask}, past_key_values=state.fork())
    assert torch.equal(found, expected)
    assert torch.equal(new_tokens(model, everything, past_key_values=state.fork()), expected)
    with pytest.raises(ValueError, match="no new tokens"):
        model.generate(new, past_key_values=state.fork(), **GREEDY)


@torch.no_grad()
def test_logits_to_keep(model: Model):
    ids = text_ids(2, 20)
    whole = model(ids).logits
    assert torch.equal(model(ids, logits_to_keep=0).logits, whole)
    for keep, rows in ((1, slice(19, 20)), (7, slice(13, 20)), (torch.tensor([3, 0, 19]), [3, 0, 19])):
        assert_close(model(ids, logits_to_keep=keep).logits, whole[:, rows], 1e-6)


@torch.no_grad()
def test_loss(model: Model):
    ids = text_ids(2, 20)
    labels = ids.masked_fill(torch.rand(2, 20) < 0.3, -100)
    out = model(ids, labels=labels)
    chosen = [(b, t) for b in range(2) for t in range(19) if labels[b, t + 1] != -100]
    losses = torch.stack([-out.logits[b, t].log_softmax(-1)[labels[b, t + 1]] for b, t in chosen])
    assert_close(out.loss, losses.mean(), 1e-6)
    assert_close(model(ids, labels=labels, logits_to_keep=5).loss, F.cross_entropy(
        out.logits[:, 15:19].flatten(0, 1), labels[:, 16:].flatten()), 1e-5)  # fmt: skip


@torch.no_grad()
def test_hidden_states(model: Model):
    ids = text_ids(2, 20)
    mask = torch.ones(2, 20).long()
    mask[0, 5:8] = 0
    out = model(ids, attention_mask=mask, output_hidden_states=True)
    assert len(out.hidden_states) == len(model.config.text_config.layer_types) + 1
    assert torch.equal(out.hidden_states[0], model.get_input_embeddings()(ids))
    assert_close(model.lm_head(out.hidden_states[-1]), out.logits, 1e-6)
    assert model(ids).hidden_states is None


@torch.no_grad()
def test_embeds_instead_of_ids(model: Model):
    """With the features in place and the token types given, the state counts as with ids."""
    batch = rows_alone(picture_prompts())[1]
    ids = batch["input_ids"]
    vision = ids == IMAGE
    embeds = model.get_input_embeddings()(ids)
    features = model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
    embeds[vision] = features
    positions, _ = model.get_rope_index(ids, batch["image_grid_thw"])
    out = model(inputs_embeds=embeds, position_ids=positions, mm_token_type_ids=vision.long(), use_cache=True)
    expected = model(**batch, use_cache=True)
    assert_close(out.logits, expected.logits, 1e-6)
    assert torch.equal(out.past_key_values.run, expected.past_key_values.run)


def gradients(model: Model, **inputs: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing(model: Model):
    batch = rows_alone(picture_prompts())[0]
    batch["labels"] = batch["input_ids"]
    model.train()
    expected = gradients(model, **batch)
    assert expected.keys() == dict(model.named_parameters()).keys()
    model.gradient_checkpointing_enable()
    runs = []
    hook = model.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    found = gradients(model, **batch)
    hook.remove()
    assert len(runs) == 2  # recomputed
    for name, gradient in expected.items():
        assert_close(found[name], gradient, 1e-5)
    with pytest.raises(ValueError, match="gradient checkpointing would write the state twice"):
        model(text_ids(1, 5), past_key_values=model.allocate_state())
    model.eval()
    model(text_ids(1, 5), past_key_values=model.allocate_state())


def test_every_parameter_gets_the_right_gradient():
    """Against differences, in float64, along one random direction, past the window."""
    model = tiny_model(dtype=torch.float64, attention_sinks=2)
    ids = text_ids(2, 90)
    found = gradients(model, input_ids=ids, labels=ids)
    direction = {name: torch.randn_like(g) for name, g in found.items()}
    named = dict(model.named_parameters())

    @torch.no_grad()
    def loss(step: float) -> Tensor:
        for name, d in direction.items():
            named[name].add_(step * d)
        logits = model(ids).logits
        for name, d in direction.items():
            named[name].sub_(step * d)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    step = 1e-8
    slope = (loss(step) - loss(-step)) / (2 * step)
    expected = sum((found[name] * d).sum() for name, d in direction.items())
    assert_close(expected, slope, 1e-5)


def test_training_with_a_carried_state(model: Model):
    """Truncated backpropagation: backward after each chunk. The past counts, its graph does not."""
    ids = text_ids(2, 160)
    model.train()
    state, carried = model.allocate_state(2), []
    for piece in ids.split(40, 1):
        before = state.fork()
        carried.append(gradients(model, input_ids=piece, labels=piece, past_key_values=state))
        assert not any(tensor.requires_grad for tensor in state.tensors().values())
        again = gradients(model, input_ids=piece, labels=piece, past_key_values=before)  # independent of what follows
        assert all(torch.equal(gradient, again[name]) for name, gradient in carried[-1].items())
    with torch.no_grad():
        assert_close(
            model(ids[:, :9], past_key_values=state).logits,
            model(torch.cat([ids, ids[:, :9]], 1)).logits[:, 160:],
            1e-5,
        )
    fresh = gradients(model, input_ids=ids[:, -40:], labels=ids[:, -40:])
    assert all(relative(carried[-1][name], gradient) > 1e-3 for name, gradient in fresh.items())


def test_backward_through_several_chunks_at_once(model: Model):
    """Summed losses, one backward: the state was overwritten meanwhile, the gradients are those of each chunk."""
    pieces, state = text_ids(1, 90).split(30, 1), model.allocate_state()
    states = [state]
    with torch.no_grad():
        for piece in pieces[:-1]:
            states.append(states[-1].fork())
            model(piece, past_key_values=states[-1])
    expected: dict[str, Tensor] = {}
    for piece, start in zip(pieces, [s.fork() for s in states], strict=True):
        for name, g in gradients(model, input_ids=piece, labels=piece, past_key_values=start).items():
            expected[name] = expected.get(name, 0) + g
    model.zero_grad()
    state = model.allocate_state()
    torch.stack([model(x, labels=x, past_key_values=state).loss for x in pieces]).sum().backward()
    for name, p in model.named_parameters():
        if name in expected:
            assert_close(p.grad, expected[name], 1e-5)


def test_adapters_train(model: Model):
    peft = pytest.importorskip("peft")
    ids = text_ids(2, 40)
    with torch.no_grad():
        before = model(ids).logits
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    adapted = peft.get_peft_model(model, config).train()
    trainable = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert {n.split(".")[-4] for n in trainable} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(trainable) == 2 * 4 * len(model.config.text_config.layer_types)
    with torch.no_grad():
        assert_close(adapted(input_ids=ids).logits, before, 1e-6)
    optimizer, losses = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], 2e-2), []
    for _ in range(15):
        optimizer.zero_grad()
        losses.append(adapted(input_ids=ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(new_tokens(adapted.eval(), {"input_ids": ids}), loop(adapted, input_ids=ids))
    with adapted.disable_adapter(), torch.no_grad():
        assert_close(adapted(input_ids=ids).logits, before, 1e-6)


def image(tokens: int, patches: int = 24) -> dict[str, Tensor]:
    return {
        "input_ids": torch.cat([text_ids(1, 3), torch.full((1, tokens), IMAGE)], 1),
        "pixel_values": torch.randn(patches, 1176),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }


MISTAKES: dict[str, tuple[Callable[[Model], dict], str]] = {
    "neither": (lambda m: {}, "either input_ids or inputs_embeds"),
    "both": (lambda m: {"input_ids": text_ids(1, 3), "inputs_embeds": torch.randn(1, 3, 32)}, "either input_ids or"),
    "fewer tokens": (lambda m: image(5), "the prompt has 5 image tokens, the images make 6"),
    "more tokens": (lambda m: image(7), "the prompt has 7 image tokens, the images make 6"),
    "patches": (lambda m: image(6, 20), "20 patches for grids of 24"),
    "no grid": (lambda m: {**image(6), "image_grid_thw": None}, "image pixels need input_ids and image_grid_thw"),
    "rows": (lambda m: {"input_ids": text_ids(2, 3), "past_key_values": m.allocate_state(3)}, "3 rows, the input 2"),
    "packed": (
        lambda m: {"input_ids": text_ids(1, 2), "past_key_values": m.allocate_state(), "seq_idx": text_ids(1, 2)},
        "packed sequences",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_named(model: Model, kind: str):
    inputs, message = MISTAKES[kind]
    with pytest.raises(ValueError, match=message):
        model(**inputs(model))


def test_state_is_allocated_only_when_wanted(model: Model):
    ids = text_ids(1, 4)
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=False).past_key_values is None
    state = model(ids, use_cache=True).past_key_values
    assert isinstance(state, State)
    assert model(ids, past_key_values=state).past_key_values is state
    assert state.get_seq_length() == 8


def test_initial_decay():
    """A in (0, 16), steps in 1e-3..1e-1; heads differ."""
    layer = (
        Model(tiny_model(["linear_attention"] * 8, num_linear_heads=16).config)
        .model.language_model.layers[3]
        .self_attn
    )
    a, dt = layer.A_log.exp(), F.softplus(layer.dt_bias)
    assert a.min() > 0 and a.max() < 16 and a.std() > 1
    assert dt.min() > 0.99e-3 and dt.max() < 1.01e-1 and dt.std() > 5e-3
