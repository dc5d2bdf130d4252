"""Seeds and shared fixtures."""

import os
import zlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: see interpreter.py
torch.set_num_threads(1)  # the models here are too small to share among threads


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> None:
    """Every test draws its own inputs, the same in every run. INFINITEVL_TEST_SEED=n draws others."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()) + int(os.environ.get("INFINITEVL_TEST_SEED", "0")))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's shared folder, with what the authors' implementation computed in golden/."""
    path = Path(os.environ.get("INFINITEVL_SHARED", ROOT.parent / "shared"))
    if not (path / "golden").is_dir():
        pytest.skip(f"no golden/ in {path}: set INFINITEVL_SHARED to the shared folder")
    return path


@pytest.fixture(scope="session")
def media() -> Path:
    """Pictures and videos of the shared folder."""
    folder = Path(os.environ.get("INFINITEVL_SHARED", ROOT.parent / "shared")) / "media"
    if not folder.is_dir():
        pytest.skip(f"the shared media are not at {folder}")
    return folder
