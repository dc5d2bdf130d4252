"""Commands run in this process as from a shell, on a small checkpoint that loads once."""

import functools
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import randomise
from infinitevl import cli
from infinitevl.model import loading
from infinitevl.model.random_model import random_model


@dataclass
class Done:
    """What a command left: its exit code, the lines of standard output and of standard error."""

    code: int
    out: list[str]
    err: list[str]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, folder = random_model(0, sliding_window=64), tmp_path_factory.mktemp("checkpoint") / "model"
    randomise(model)
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def media(shared: Path) -> Path:
    return shared / "media"


@functools.lru_cache
def _loaded(*args: Any, **options: Any) -> Any:
    return load(*args, **options)


load = loading.load


@pytest.fixture(autouse=True)
def surroundings(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(loading, "load", _loaded)
    monkeypatch.setenv("INFINITEVL_MODEL", str(checkpoint))
    monkeypatch.chdir(tmp_path)
    return


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def command(*args: object, stdin: Any = b"") -> Done:
        keyboard = io.TextIOWrapper(io.BytesIO(stdin)) if isinstance(stdin, bytes) else stdin
        monkeypatch.setattr(sys, "argv", ["infinitevl", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", keyboard)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return Done(int(left.value.code or 0), out.splitlines(), err.splitlines())

    return command
