"""What may import what, and that importing stays light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "infinitevl"
FILES = sorted(SOURCE.rglob("*.py"))

ALLOWED = {
    "errors": set(),
    "machine": set(),
    "ops": {"errors"},
    "video": {"errors"},
    "model": {"errors", "ops", "video"},
    "streaming": {"errors", "ops", "video", "model"},
    "engine": {"errors", "ops", "video", "model", "streaming"},
    "server": {"errors", "video", "model", "streaming", "engine"},
    "client": {"errors", "video"},
    "cluster": {"errors", "video", "model", "streaming", "engine", "server"},
    "data": {"errors", "video", "model"},
    "train": {"errors", "machine", "ops", "video", "model", "data"},
    "benchmark": {"errors", "machine", "ops", "video", "model", "streaming", "engine", "train"},
    "evaluation": {"errors", "video", "model", "streaming", "data"},
    "commands": {
        "errors",
        "machine",
        "ops",
        "video",
        "model",
        "streaming",
        "engine",
        "server",
        "client",
        "cluster",
        "data",
        "train",
        "evaluation",
        "benchmark",
    },
    "cli": {"errors", "commands"},
    "__init__": {"errors", "model", "streaming", "video"},  # lazily: see below
}
FACADE = {"model/modeling.py": {"Stream"}, "cli.py": {"__version__"}}  # names taken from the root package
ONLY_IN = {
    "triton": ("ops/triton/",),
    "fastapi": ("server/", "cluster/"),
    "uvicorn": ("server/",),
    "starlette": ("server/", "cluster/"),
    "ray": ("cluster/",),
    "av": ("video/sources.py", "data/streamworld/disk.py", "commands/demo.py"),
}
LAZY = {"av": ("data/streamworld/disk.py", "commands/demo.py"), "matplotlib": ("",)}
FORBIDDEN = re.compile(
    r"/wor[k]\b|py[p]i\.org|python[h]osted|download\.pytorch|huggingface\.co|hf-mirror|jfrog|artifactory"
)


def place(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, those of the root package as infinitevl.NAME; whether when it is imported."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {node for function in functions for node in ast.walk(function)}
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    typing = {node for check in checks for node in ast.walk(check)}
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{place(path)}: relative import"
            name = node.module or ""
            names = [f"{name}.{alias.name}" for alias in node.names] if name == "infinitevl" else [name]
            yield from ((name, node not in inside) for name in names)


@pytest.mark.parametrize("path", FILES, ids=place)
def test_imports_go_one_way(path: Path):
    part = place(path).split("/")[0].removesuffix(".py")
    for name, _ in imports(path):
        root, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if root != "infinitevl" or target == part or target in FACADE.get(place(path), ()):
            continue
        assert target in ALLOWED[part], f"{place(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_heavy_libraries_have_their_place(path: Path):
    for name, at_once in imports(path):
        root = name.split(".")[0]
        assert place(path).startswith(ONLY_IN.get(root, ("",))), f"{place(path)} imports {name}"
        assert not (at_once and place(path).startswith(LAZY.get(root, ("never",)))), f"{name} is imported at once"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_no_place_of_this_machine_is_named(path: Path):
    assert not FORBIDDEN.search(path.read_text())


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", ["infinitevl", "infinitevl.cli", "infinitevl.errors", "infinitevl.commands"])
def test_the_package_is_light(module: str):
    heavy = "{'torch', 'transformers', 'av', 'numpy', 'PIL', 'rich', 'safetensors', 'tokenizers'}"
    assert fresh(f"import sys, {module}; print(*({heavy} & sys.modules.keys()))").strip() == ""


def test_the_package_comes_quickly():
    code = "from time import perf_counter as t; a = t(); import infinitevl; print(t() - a)"
    assert min(float(fresh(code)) for _ in range(3)) < 0.3


def test_everything_public_is_there():
    import infinitevl

    for name in infinitevl.__all__:
        assert getattr(infinitevl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        infinitevl.nothing  # noqa: B018


@pytest.mark.parametrize("part", ["video", "video.sampling", "errors", "ops"])
def test_parts_below_the_model_do_not_load_it(part: str):
    assert fresh(f"import sys, infinitevl.{part}; print('transformers' in sys.modules)").strip() == "False"
