"""The student holds what its teacher gives, made of any form of Qwen2.5-VL checkpoint, in little memory."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from infinitevl.errors import InfiniteVLError
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.convert import convert, plan, student_config
from infinitevl.model.info import newest_name, read_headers
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration as Student

LAYERS, HEADS, GROUPS, WIDTH = 5, 4, 2, 16
TEXT = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6, "rope_theta": 5e5,
}  # fmt: skip
ROPE = {"mrope_section": [2, 3, 3]}
VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": 64,
    "fullatt_block_indexes": [1], "tokens_per_second": 2, "in_channels": 3,
}  # fmt: skip
TOKENS = {
    "image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 58, "vision_end_token_id": 59,
}  # fmt: skip
SHAPES = {  # of Qwen2.5-VL as published
    "3B": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
           "intermediate_size": 11008, "vocab_size": 151936},
    "7B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064},
    "72B": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "intermediate_size": 29568, "vocab_size": 152064},
}  # fmt: skip


def flat_config(tied: bool, **changes: Any) -> dict[str, Any]:
    """As on the hub: text fields at the top level, transformers 4 names."""
    return {
        "model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "torch_dtype": "float32", "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2,
        "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 70,
        "rope_scaling": {"type": "mrope", **ROPE}, "vision_config": VISION, **TEXT, **TOKENS, **changes,
    }  # fmt: skip


@torch.no_grad()
def make_teacher(folder: Path, tied: bool = True, dtype: torch.dtype = torch.float32, **saving: Any) -> Path:
    model: Any = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(flat_config(tied)))
    for parameter in model.parameters():
        parameter.normal_(0, 0.1)
    model.to(dtype).save_pretrained(folder, **saving)
    return folder


def make_old(folder: Path, teacher: Path) -> Path:
    """The same teacher under the names and with the configuration of the hub."""
    folder.mkdir()
    tensors = tensors_of(teacher)
    save_file({old_name(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(flat_config(tied="lm_head.weight" not in tensors)))
    return folder


def make_new(folder: Path, teacher: Path) -> Path:
    """The same teacher under the newest names and with a nested configuration."""
    folder.mkdir()
    save_file(tensors_of(teacher), folder / "model.safetensors")
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": TEXT["rope_theta"], **ROPE}}
    text = {**TEXT, **rope, "bos_token_id": 1, "eos_token_id": 2, "model_type": "qwen2_5_vl_text"}
    nested = {"model_type": "qwen2_5_vl", "text_config": text, "vision_config": VISION, **TOKENS}
    tied = not any(name.startswith("lm_head") for name in tensors_of(teacher))
    (folder / "config.json").write_text(json.dumps({**nested, "tie_word_embeddings": tied}))
    return folder


def old_name(name: str) -> str:
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def tensors_of(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {newest_name(name): tensor for file in files for name, tensor in load_file(file).items()}


def load(folder: Path) -> Student:
    model, report = Student.from_pretrained(folder, output_loading_info=True)  # type: ignore[misc]
    assert {what: found for what, found in report.items() if found} == {}
    return model.eval()


@pytest.fixture(params=["tied", "untied", "bfloat16", "sharded", "hub", "nested"])
def teacher(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder, form = tmp_path / "teacher", request.param
    dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
    saving = {"max_shard_size": "100KB"} if form == "sharded" else {}
    made = make_teacher(folder, tied=form in ("tied", "hub", "bfloat16"), dtype=dtype, **saving)
    rewrite = {"hub": make_old, "nested": make_new}.get(form)
    return rewrite(tmp_path / form, made) if rewrite else made


@pytest.fixture
def small_teacher(tmp_path: Path) -> Path:
    return make_teacher(tmp_path / "teacher")


def is_delta(name: str) -> bool:
    prefix, mixer, _ = name.partition(".self_attn.")
    return bool(mixer) and int(prefix.rsplit(".", 1)[1]) % 4 != 0


def test_the_student_loads_and_inherits(teacher: Path, tmp_path: Path) -> None:
    convert(teacher, tmp_path / "student", sliding_window=16)
    given, model = tensors_of(teacher), load(tmp_path / "student")
    state = model.state_dict()
    kept = {name for name in given if not is_delta(name)}
    assert len(list((tmp_path / "student").glob("*.safetensors"))) == 1
    assert tensors_of(tmp_path / "student").keys() == state.keys() - (
        {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    )
    for name in kept:
        assert state[name].dtype == given[name].dtype and state[name].equal(given[name]), name
    assert ("lm_head.weight" in given) != model.config.tie_word_embeddings
    assert any(is_delta(name) and name.endswith("bias") for name in given), "no bias was there to be dropped"


def test_the_configuration(teacher: Path, tmp_path: Path) -> None:
    returned = convert(teacher, tmp_path / "student", sliding_window=16)
    stored, text = InfiniteVLConfig.from_pretrained(tmp_path / "student"), returned.text_config
    assert stored.to_diff_dict() == returned.to_diff_dict()
    assert stored.architectures == ["InfiniteVLForConditionalGeneration"]
    assert stored.dtype == tensors_of(teacher)["model.visual.patch_embed.proj.weight"].dtype
    assert text.layer_types == ["sliding_attention", *["linear_attention"] * 3, "sliding_attention"]
    assert (text.num_linear_heads, text.linear_head_dim, text.expand_v) == (HEADS, WIDTH, 2)
    assert (text.sliding_window, text.num_key_value_heads, text.rms_norm_eps) == (16, 2, 1e-6)
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 5e5, **ROPE}
    assert (stored.bos_token_id, stored.eos_token_id) == (1, 2)
    assert {name: getattr(stored, name) for name in TOKENS} == TOKENS
    assert {name: getattr(stored.vision_config, name) for name in VISION} == VISION


def test_the_seeded_projections(teacher: Path, tmp_path: Path) -> None:
    convert(teacher, tmp_path / "student")
    given, made = tensors_of(teacher), tensors_of(tmp_path / "student")
    prefix = "model.language_model.layers.2.self_attn"
    q, k, v, o = (given[f"{prefix}.{x}_proj.weight"] for x in "qkvo")
    assert made[f"{prefix}.q_proj.weight"].equal(q)
    k_made = made[f"{prefix}.k_proj.weight"].view(HEADS, WIDTH, -1)
    v_made = made[f"{prefix}.v_proj.weight"].view(HEADS, 2 * WIDTH, -1)
    o_made = made[f"{prefix}.o_proj.weight"].view(-1, HEADS, 2 * WIDTH)
    for head in range(HEADS):
        group = slice(head // GROUPS * WIDTH, (head // GROUPS + 1) * WIDTH)
        columns = o[:, head * WIDTH : (head + 1) * WIDTH] / 2
        assert k_made[head].equal(k[group])
        assert v_made[head].equal(torch.cat([v[group], v[group]]))
        assert o_made[:, head].equal(torch.cat([columns, columns], dim=1))


def test_values_pass_as_in_the_teacher(small_teacher: Path, tmp_path: Path) -> None:
    """o_proj(v_proj(x)) of the student is what the teacher makes of a lone token, but for the bias."""
    convert(small_teacher, tmp_path / "student")
    teacher: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(small_teacher)
    attention = teacher.model.language_model.layers[1].self_attn
    student: Any = load(tmp_path / "student").model.language_model.layers[1].self_attn
    x = torch.randn(7, TEXT["hidden_size"])
    with torch.no_grad():
        values = attention.v_proj(x) - attention.v_proj.bias
        heads = values.unflatten(-1, (-1, WIDTH)).repeat_interleave(GROUPS, dim=1)
        expected = attention.o_proj(heads.flatten(1))
        torch.testing.assert_close(student.o_proj(student.v_proj(x)), expected)


def test_the_fresh_parts(small_teacher: Path, tmp_path: Path) -> None:
    convert(small_teacher, tmp_path / "student")
    made = tensors_of(tmp_path / "student")
    prefixes = [f"model.language_model.layers.{i}.self_attn" for i in (1, 2, 3)]
    fresh = {
        part: torch.cat([made[f"{prefix}.{part}"].flatten() for prefix in prefixes])
        for part in ("A_log", "dt_bias", "o_norm.weight", "a_proj.weight", "b_proj.weight", "g_proj.weight")
    }
    step = torch.nn.functional.softplus(fresh["dt_bias"])
    assert fresh["A_log"].exp().max() <= 16 and fresh["A_log"].unique().numel() == 3 * HEADS
    assert step.min() >= 0.99e-3 and step.max() <= 1.01e-1 and step.unique().numel() == 3 * HEADS
    assert (fresh["o_norm.weight"] == 1).all()
    for part in ("a_proj.weight", "b_proj.weight", "g_proj.weight"):
        assert fresh[part].std().item() == pytest.approx(0.02, rel=0.15) and abs(fresh[part].mean()) < 3e-3
    for part in "qkv":
        taps = made[f"model.language_model.layers.1.self_attn.{part}_conv1d.weight"]
        noise = taps - torch.tensor([0.0, 0.0, 0.0, 1.0])
        assert noise.std().item() == pytest.approx(0.02, rel=0.2) and noise.abs().max() < 0.12


def test_the_student_runs(teacher: Path, tmp_path: Path) -> None:
    convert(teacher, tmp_path / "student", sliding_window=16)
    model = load(tmp_path / "student")
    with torch.no_grad():
        logits = model(input_ids=torch.randint(58, (2, 40))).logits
    assert logits.shape == (2, 40, 64) and logits.isfinite().all() and logits.std() > 0


@pytest.mark.parametrize("kind, window", [("full_attention", 8192), ("sliding_attention", 8192)])
def test_a_student_that_keeps_all_attention_is_the_teacher(
    small_teacher: Path, tmp_path: Path, kind: str, window: int
) -> None:
    convert(small_teacher, tmp_path / "student", sliding_window=window, layer_types=[kind] * LAYERS)
    given, made = tensors_of(small_teacher), tensors_of(tmp_path / "student")
    assert given.keys() == made.keys() and all(made[name].equal(given[name]) for name in given)
    ids = torch.randint(58, (1, 30))
    teacher = Qwen2_5_VLForConditionalGeneration.from_pretrained(small_teacher).eval()
    with torch.no_grad():
        logits, expected = load(tmp_path / "student")(input_ids=ids).logits, teacher(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_old_and_new_forms_make_the_same_student(tmp_path: Path) -> None:
    """Whatever the names, the configuration's form and the shards, and whatever else drew random numbers."""
    whole = make_teacher(tmp_path / "whole", tied=False)
    sources = [whole, make_old(tmp_path / "old", whole), make_new(tmp_path / "new", whole)]
    students = []
    for source, limit in zip(sources, (2 << 30, 100_000, 200_000), strict=True):
        torch.rand(3)
        convert(source, tmp_path / f"student-{source.name}", max_shard_bytes=limit)
        students.append(tensors_of(tmp_path / f"student-{source.name}"))
    assert all(s.keys() == students[0].keys() for s in students)
    assert all(s[name].equal(tensor) for s in students for name, tensor in students[0].items())


def test_the_seed(small_teacher: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        convert(small_teacher, tmp_path / name, seed=seed)
    a, b, c = (tensors_of(tmp_path / name) for name in "abc")
    assert all(a[name].equal(b[name]) for name in a)
    differing = {name.split("self_attn.")[1] for name in a if not a[name].equal(c[name])}
    fresh = {*(f"{x}_proj.weight" for x in "abg"), *(f"{x}_conv1d.weight" for x in "qkv"), "A_log", "dt_bias"}
    assert differing == fresh
    gates = [a[f"model.language_model.layers.{i}.self_attn.g_proj.weight"] for i in (1, 2, 3)]
    assert not gates[0].equal(gates[1]) and not gates[1].equal(gates[2])


def test_converting_leaves_the_random_state(small_teacher: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    convert(small_teacher, tmp_path / "student")
    assert torch.get_rng_state().equal(before)


def test_shards(small_teacher: Path, tmp_path: Path) -> None:
    limit, steps = 100_000, []
    convert(small_teacher, tmp_path / "student", max_shard_bytes=limit, progress=lambda *step: steps.append(step))
    index = json.loads((tmp_path / "student" / "model.safetensors.index.json").read_text())
    stored = read_headers(tmp_path / "student")
    sizes: dict[str, list[int]] = {}
    for tensor in stored.values():
        sizes.setdefault(tensor.file.name, []).append(tensor.nbytes)
    assert len(sizes) > 2 and all(sum(shard) <= limit or len(shard) == 1 for shard in sizes.values())
    assert index["weight_map"] == {name: tensor.file.name for name, tensor in stored.items()}
    assert index["metadata"]["total_size"] == sum(map(sum, sizes.values()))
    assert steps[-1] == (index["metadata"]["total_size"],) * 2 and len(steps) == len(stored)
    load(tmp_path / "student")


def test_companions_are_copied(small_teacher: Path, tmp_path: Path) -> None:
    companions = ("tokenizer.json", "merges.txt", "preprocessor_config.json", "chat_template.jinja")
    for name in (*companions, "README.md"):
        (small_teacher / name).write_text(f"the teacher's {name}")
    convert(small_teacher, tmp_path / "student")
    copied = {path.name for path in (tmp_path / "student").iterdir()}
    assert copied == {*companions, "config.json", "generation_config.json", "model.safetensors"}
    assert all((tmp_path / "student" / name).read_text() == f"the teacher's {name}" for name in companions)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("layer_types", [None, ("full_attention",)])
def test_the_plan_of_the_published_sizes(size: str, layer_types: tuple[str, ...] | None) -> None:
    shape = SHAPES[size]
    rope = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": shape["hidden_size"]}
    config = Qwen2_5_VLConfig.from_dict(
        {**shape, **rope, "vision_config": vision, "tie_word_embeddings": size == "3B"}
    )
    student = student_config(config, layer_types=layer_types and layer_types * shape["num_hidden_layers"])
    with torch.device("meta"):
        teacher, made = Qwen2_5_VLForConditionalGeneration(config).state_dict(), Student(student).state_dict()
    if size == "3B":
        del teacher["lm_head.weight"], made["lm_head.weight"]
    recipes = plan(student)
    assert {name: r.shape for name, r in recipes.items()} == {name: t.shape for name, t in made.items()}
    assert all(r.make(teacher[r.source]).shape == r.shape for r in recipes.values() if r.source)
    unused = teacher.keys() - {recipe.source for recipe in recipes.values()}
    biases = {name for name in teacher if is_delta(name) and name.endswith("bias")}
    assert unused == (set() if layer_types else biases)


MEASURE = """
import re, sys
from pathlib import Path
from infinitevl.model.convert import convert
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl
def peak(): return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
small, wide, out = map(Path, sys.argv[1:])
convert(small, out / "warm", max_shard_bytes=1 << 20)
before = peak()
convert(wide, out / "wide", max_shard_bytes=32 << 20)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_far_below_the_checkpoint(small_teacher: Path, tmp_path: Path) -> None:
    """A teacher of 300 MB in 16 MB tensors, in one file, through shards of 32 MiB: a shard and one more tensor."""
    size = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "vocab_size": 4096}
    changes = {**size, "num_hidden_layers": 5, "vision_config": {**VISION, "out_hidden_size": 1024}}
    values = flat_config(True, **changes, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]})
    wide = tmp_path / "wide"
    with torch.device("meta"):
        state = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(values)).state_dict()
    del state["lm_head.weight"]
    wide.mkdir()
    save_file({name: torch.ones(tensor.shape) for name, tensor in state.items()}, wide / "model.safetensors")
    (wide / "config.json").write_text(json.dumps(values))
    assert (wide / "model.safetensors").stat().st_size > 300e6
    command = [sys.executable, "-c", MEASURE, str(small_teacher), str(wide), str(tmp_path / "out")]
    freed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # else malloc keeps some of what was given back
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True, env=freed).stdout.split()[-1])
    assert grown < 60e6, f"memory grew by {grown / 1e6:.0f} MB"


def fails(source: Path, out: Path, *words: str, **options: Any) -> None:
    """Converting fails in one line with these words, and leaves nothing."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(InfiniteVLError) as caught:
        convert(source, out, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert sorted(out.parent.iterdir()) == before


def rewrite(teacher: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, teacher / "model.safetensors", {"format": "pt"})


def test_sources_that_are_no_folder(tmp_path: Path) -> None:
    fails(tmp_path / "nowhere", tmp_path / "out", "nowhere", "does not exist")
    (tmp_path / "file").touch()
    fails(tmp_path / "file", tmp_path / "out", "not a folder")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", tmp_path / "out", "empty has no config.json")


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", ("cannot read",)),
        ("[]", ("not a JSON object",)),
        ('{"model_type": "llama"}', ("not a qwen2_5_vl", "llama")),
        (json.dumps(flat_config(True, quantization_config={"bits": 4})), ("quantized",)),
        (json.dumps(flat_config(True, hidden_size="wide")), ("cannot use", "hidden_size")),
        (json.dumps(flat_config(True, num_attention_heads=0)), ("cannot use",)),
        (json.dumps(flat_config(True, rope_scaling={"type": "mrope", "mrope_section": [1]})), ("mrope",)),
        (json.dumps(flat_config(True, vocab_size=-1)), ("cannot use",)),
    ],
)
def test_configurations_that_will_not_do(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(text)
    fails(tmp_path / "teacher", tmp_path / "out", *words)


def test_weights_that_are_not_there(small_teacher: Path, tmp_path: Path) -> None:
    (small_teacher / "model.safetensors").unlink()
    fails(small_teacher, tmp_path / "out", "has no model.safetensors")
    (small_teacher / "pytorch_model.bin").touch()
    fails(small_teacher, tmp_path / "out", "pickled weights (pytorch_model.bin), refused")


def test_a_missing_shard_and_an_index_without_a_map(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path / "teacher", max_shard_size="100KB")
    shard = sorted(teacher.glob("model-*.safetensors"))[1]
    shard.unlink()
    fails(teacher, tmp_path / "out", "lacks the shard", shard.name)
    (teacher / "model.safetensors.index.json").write_text("{}")
    fails(teacher, tmp_path / "out", "no weight_map")


def test_a_truncated_file(small_teacher: Path, tmp_path: Path) -> None:
    file = small_teacher / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    fails(small_teacher, tmp_path / "out", "model.safetensors is truncated or damaged")


def test_tensors_that_will_not_do(small_teacher: Path, tmp_path: Path) -> None:
    tensors = tensors_of(small_teacher)
    name, k = "model.language_model.norm.weight", "model.language_model.layers.1.self_attn.k_proj.weight"
    rewrite(small_teacher, {n: t for n, t in tensors.items() if n not in (name, k)})
    fails(small_teacher, tmp_path / "out", f"lacks {k} and 1 more")
    rewrite(small_teacher, {**tensors, name: torch.ones(7)})
    fails(small_teacher, tmp_path / "out", f"{name} of shape [7]")
    rewrite(small_teacher, {**tensors, k: torch.ones(33, 64)})
    fails(small_teacher, tmp_path / "out", f"{k} of shape [33, 64]")
    rewrite(small_teacher, {**tensors, name: torch.ones(64, dtype=torch.int8)})
    fails(small_teacher, tmp_path / "out", f"{name} as I8")


def test_an_output_that_is_taken(small_teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert(small_teacher, out)  # an empty folder will do
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    fails(small_teacher, out, "exists and is not empty")
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "file").touch()
    fails(small_teacher, tmp_path / "file", "exists")
    with pytest.raises(InfiniteVLError, match="cannot write"):
        convert(small_teacher, tmp_path / "file" / "out")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_fills_up(small_teacher: Path, tmp_path: Path) -> None:
    with largest_file(60_000):
        fails(small_teacher, tmp_path / "out", "cannot write", "too large", max_shard_bytes=50_000)


def test_an_interrupted_conversion_leaves_nothing(small_teacher: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(small_teacher, tmp_path / "out", max_shard_bytes=50_000, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
