"""Data sets of given rows, in any format."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from data_kit import Make, fake_datasets, write_hub, write_lines, write_tars


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Writes rows in the format that is the test's parameter, and gives the path to open."""

    def write(rows: list[Any]) -> Path:
        form = request.param
        if form == "json":
            (tmp_path / "a.json").write_text(json.dumps(rows))
            return tmp_path / "a.json"
        if form == "jsonl":
            return write_lines(tmp_path / "a.jsonl", rows)
        return (write_tars if form == "webdataset" else write_hub)(tmp_path, rows)

    if request.param == "hf":
        request.getfixturevalue("hub")
    return write


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library `datasets`, or a stand-in where it is not installed."""
    if importlib.util.find_spec("datasets"):
        importlib.import_module("datasets")
    else:
        monkeypatch.setitem(sys.modules, "datasets", fake_datasets())
