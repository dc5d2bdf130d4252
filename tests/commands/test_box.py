"""Commands without --model take the model in the box, and say so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infinitevl.commands import demo
from infinitevl.model import loading

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def boxed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFINITEVL_MODEL")
    monkeypatch.setattr(loading, "BOX", checkpoint)
    monkeypatch.setattr(demo, "SHORT_ANSWER_TOKENS", 1)


def commands(media: Path) -> dict[str, tuple[object, ...]]:
    quick = ("--max-tokens", "3", "--fps", "1", "--max-pixels", "784")
    return {
        "stream": ("stream", media / "2.avi", "--ask", "What?", *quick),
        "chat": ("chat", "What?", "--image", media / "1.jpg", *quick),
        "demo": ("demo", "--seconds", "4"),
        "info": ("info",),
    }


@pytest.mark.parametrize("name", ["stream", "chat", "demo", "info"])
def test_the_box_is_the_default_and_is_told(run: Run, media: Path, name: str):
    done = run(*commands(media)[name])
    assert (done.code, len(done.err)) == (0, 1)
    assert "StreamWorld model in the box" in done.err[0]
    assert "--model hustvl/InfiniteVL-LongSFT" in done.err[0]


@pytest.mark.parametrize("name", ["stream", "chat", "info"])
def test_a_model_that_is_named_is_not_the_box(
    run: Run, media: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(loading, "BOX", Path("nowhere"))
    monkeypatch.setenv("INFINITEVL_MODEL", str(checkpoint))
    done = run(*commands(media)[name])
    assert (done.code, done.err) == (0, [])


@pytest.mark.parametrize("name", ["stream", "chat", "demo", "info"])
def test_an_empty_box_is_one_line(run: Run, media: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(loading, "BOX", Path("nowhere"))
    done = run(*commands(media)[name])
    assert (done.code, done.out, len(done.err)) == (2, [], 1)
    assert "no model in the box" in done.err[0]
