"""`infinitevl chat`, `convert` and `info`, and what holds for every command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import infinitevl
from infinitevl.model.random_model import byte_tokenizer

Run = Callable[..., Any]
COMMANDS = ("stream", "chat", "convert", "info", "demo", "data")


def mistaken(done: Any, message: str) -> None:
    assert (done.code, done.out, len(done.err)) == (2, [], 1), done
    assert message in done.err[0]
    assert done.err[0].startswith("infinitevl: ")


def test_help(run: Run):
    done = run()
    assert (done.code, done.out) == (2, [])
    assert "Usage: infinitevl" in done.err[0]
    assert run("--help").out == done.err
    for name in COMMANDS:
        assert any(line.split()[:1] == [name] for line in done.err)
        found = run(name, "--help")
        assert (found.code, found.err) == (0, [])
        assert f"Usage: infinitevl {name}" in found.out[0]
    assert run("--version").out == [f"infinitevl, version {infinitevl.__version__}"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sing"], "No such command 'sing'"),
        (["--loud"], "No such option '--loud'"),
        (["chat"], "Missing argument 'QUESTION'"),
        (["chat", ""], "the question is empty"),
        (["chat", "What?", "--image", "missing.png"], "missing.png: no such file"),
        (["chat", "What?", "--video", "text"], "text: not a video that can be read"),
        (["chat", "What?", "--video", "folder"], "folder: a folder without pictures"),
        (["chat", "What?", "--fps", "0", "--video", "x.png"], "fps must be a positive number"),
        (["chat", "What <|image_pad|>?"], "1 image marks for 0 images"),
        (["chat", "What?", "--model", "nothing"], "no such checkpoint folder: nothing"),
        (["chat", "What?", "--max-tokens", "0"], "not in the range"),
        (["info", "nothing"], "nothing does not exist"),
        (["info", "folder"], "no config.json"),
        (["convert", "nothing", "out"], "nothing does not exist"),
        (["convert", "folder", "out"], "no config.json"),
        (["convert", "folder", "out", "--window", "0"], "0 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(run: Run, tmp_path: Path, args: list[str], message: str):
    (tmp_path / "text").write_text("no video\n" * 100)
    (tmp_path / "folder").mkdir()
    Image.fromarray(np.zeros((56, 56, 3), np.uint8)).save(tmp_path / "x.png")
    mistaken(run(*args), message)


def test_chat(run: Run, media: Path, checkpoint: Path):
    """Pictures first, then videos, then the question; the same as `generate` on the messages."""
    options = ("--max-tokens", "8", "--max-pixels", "12544", "--fps", "0.5")
    images, video = ("--image", media / "1.jpg", "--image", media / "2.jpg"), ("--video", media / "3.mp4")
    done = run("chat", "What is it?", *images, *video, *options)
    assert (done.code, done.err) == (0, [])
    model = infinitevl.load(checkpoint)
    content = [
        {"type": "image", "image": media / "1.jpg"}, {"type": "image", "image": media / "2.jpg"},
        {"type": "video", "video": media / "3.mp4"}, {"type": "text", "text": "What is it?"},
    ]  # fmt: skip
    inputs = model.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        fps=0.5, max_pixels=12544,
    )  # fmt: skip
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = model.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(done.out) == "".join(c for c in text if c.isprintable() or c == "\t")
    others = [run("chat", "What is it?", *seen, *options).out for seen in ((), images, video)]
    assert len({tuple(out) for out in [*others, done.out]}) == 4


def test_chat_samples(run: Run):
    found = [run("chat", "What?", "--temperature", "3", "--seed", seed, "--max-tokens", "8").out for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_info(run: Run, checkpoint: Path):
    done = run("info", checkpoint)
    assert (done.code, done.err) == (0, [])
    text = "\n".join(done.out)
    for word in ("infinite_vl", "float32", "sliding_attention", "linear_attention", "in all"):
        assert word in text


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A tiny Qwen2.5-VL as transformers writes it, with tokenizer."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer, folder = byte_tokenizer(), tmp_path / "qwen"
    ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|image_pad|>", "<|video_pad|>", *ids)}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_convert(run: Run, media: Path, qwen: Path, tmp_path: Path):
    done = run("convert", qwen, tmp_path / "student", "--window", "32", "--seed", "3")
    assert (done.code, done.err) == (0, [])
    assert len(done.out) == 1
    model = infinitevl.load(tmp_path / "student")
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in done.out[0]
    assert model.config.text_config.sliding_window == 32
    assert run("info", tmp_path / "student").code == 0
    student = ("--model", tmp_path / "student", "--fps", "1", "--max-pixels", "784", "--max-tokens", "3")
    assert run("stream", media / "3.mp4", *student, "--ask", "What?").code == 0
    mistaken(run("convert", qwen, tmp_path / "student"), "exists and is not empty")
    mistaken(run("stream", media / "3.mp4", "--model", qwen), "infinitevl convert")
    mistaken(run("info", qwen), "qwen2_5_vl")


def test_control_characters_stay_out_of_the_terminal(capsys: pytest.CaptureFixture[str]):
    from infinitevl.commands.console import say

    say(["a\x1b[31mb", "\x07\r", "c\n", "d\té"], "  ")
    assert capsys.readouterr().out == "  a[31mbc\n  d\té\n"
