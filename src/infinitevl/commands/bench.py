"""`infinitevl bench`: the speed and memory of a stream against its context, beside the machine's floor."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from infinitevl.benchmark.figure import draw
from infinitevl.benchmark.results import Results, markdown, sentences, table
from infinitevl.benchmark.run import FACTOR, Wanted, benchmark
from infinitevl.benchmark.work import Costs
from infinitevl.commands.console import load_model, make_folder, quiet, size, warn
from infinitevl.errors import InfiniteVLError
from infinitevl.machine import free_bytes
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.fp8 import NAMES
from infinitevl.model.info import one_line, parse_config, read_config, working_set
from infinitevl.model.loading import parse_device, parse_dtype
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.processing import InfiniteVLProcessor
from infinitevl.model.random_model import byte_tokenizer, random_weights

GPU_ONLY = ("triton", "fla")
WIDTH, KEPT = 112, 9  # columns of the table; states alive at a time


@dataclass(frozen=True)
class BenchOptions:
    """As on the command line; tokens, frames, side None: by the model and the machine."""

    model: str | None
    named: str | None
    config: str | None
    random_weights: bool
    compare: tuple[str, ...]
    tokens: int | None
    frames: int | None
    side: int | None
    streamed: bool
    out: Path
    as_json: bool
    device: str | None
    dtype: str | None


def run(options: BenchOptions) -> int:
    check(options)
    make_folder(options.out)
    fp8 = options.dtype in NAMES
    model = get_model(replace(options, dtype="bfloat16") if fp8 else options)
    wanted = Wanted(options.compare, options.tokens, options.frames, options.side, options.streamed, fp8)
    try:
        results = benchmark(model, _name(options), wanted, _progress)
    except torch.OutOfMemoryError as error:
        raise InfiniteVLError(f"out of memory on {model.device}: {str(error).splitlines()[0]}") from None
    line = write(results, options.out)
    if not options.as_json:
        show(results, options.out)
    click.echo(line)
    return 0


def check(options: BenchOptions) -> None:
    """Mistakes are told before anything is loaded. InfiniteVLError."""
    if options.model and options.named:
        raise InfiniteVLError("give MODEL or --model, not both")
    if options.config and (options.model or options.named):
        raise InfiniteVLError("give a MODEL or a --config, not both")
    if options.config and not options.random_weights:
        raise InfiniteVLError(f"--config {options.config} has sizes but no weights: add --random-weights")
    if options.random_weights and not options.config:
        raise InfiniteVLError("--random-weights needs --config: 4b, or a folder with a config.json")
    if options.side and options.side % FACTOR:
        raise InfiniteVLError(f"--side {options.side}: it has to be a multiple of {FACTOR}")
    if "fla" in options.compare and find_spec("fla") is None:
        raise InfiniteVLError("--compare fla needs flash-linear-attention: pip install flash-linear-attention")
    device = _device(options)
    for peer in GPU_ONLY:
        if peer in options.compare and device.type != "cuda":
            raise InfiniteVLError(f"--compare {peer} needs a GPU, and this runs on {device}")
    if find_spec("matplotlib") is None:
        warn("no figure without matplotlib: pip install 'infinitevl[eval]'")


def get_model(options: BenchOptions) -> InfiniteVLForConditionalGeneration:
    """A checkpoint, or random weights of a configuration's sizes."""
    if options.config is None:
        return load_model(_checkpoint(options), options.device, options.dtype)
    quiet()
    config, processor = _sizes(options.config)
    device, dtype = _device(options), _dtype(options)
    _check_memory(options.config, config, device, dtype)
    with Console(stderr=True).status(f"making random weights of {escape(options.config)}"):
        return random_weights(config, processor, device, dtype)


def _name(options: BenchOptions) -> str:
    if options.config:
        return f"{options.config} (random weights)"
    return _checkpoint(options) or "the model in the box"


def _checkpoint(options: BenchOptions) -> str | None:
    return options.model or options.named or os.environ.get("INFINITEVL_MODEL") or None


def write(results: Results, out: Path) -> str:
    """bench.json, bench.md and, with matplotlib, bench.png; returns the JSON line."""
    line = json.dumps(results.record())
    try:
        (out / "bench.json").write_text(f"{line}\n")
        (out / "bench.md").write_text(markdown(results))
        if find_spec("matplotlib") is not None:
            draw(out / "bench.png", results)
    except OSError as error:
        raise InfiniteVLError(f"cannot write to {out}: {error.strerror}") from None
    return line


def show(results: Results, out: Path) -> None:
    console = Console(highlight=False, emoji=False, width=max(WIDTH, Console().width))
    console.print(f"{escape(results.title)}\n")
    for subject in results.subjects:
        console.print(table(results, subject))
    for told in sentences(results):
        console.print(f"- {escape(told)}")
    console.print(f"written: {', '.join(str(path) for path in sorted(out.glob('bench.*')))}\n", soft_wrap=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, str], None]]:
    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description:36}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, told: bar.update(task, completed=done, description=told)


def _sizes(name: str) -> tuple[InfiniteVLConfig, InfiniteVLProcessor]:
    """Of the 4B model, or of a folder's config.json; a folder without a tokenizer gets one of bytes."""
    folder = Path(name)
    if name == "4b":
        processor = InfiniteVLProcessor(byte_tokenizer())
        return InfiniteVLConfig(**processor.config_ids()), processor
    if not folder.exists():
        raise InfiniteVLError(f"--config {name}: it is 4b, or a folder with a config.json")
    values = read_config(folder, InfiniteVLConfig.model_type)
    own = (folder / "tokenizer.json").is_file()
    try:
        processor = InfiniteVLProcessor.from_pretrained(folder) if own else InfiniteVLProcessor(byte_tokenizer())
    except Exception as error:  # bad files make tokenizers raise many kinds
        raise InfiniteVLError(f"cannot use {folder / 'tokenizer.json'}: {one_line(error)}") from error
    config = parse_config(InfiniteVLConfig.from_dict, {**values, **({} if own else processor.config_ids())}, folder)
    if len(processor.tokenizer) > config.text_config.vocab_size:
        raise InfiniteVLError(
            f"{folder}: a vocabulary of {config.text_config.vocab_size} for {len(processor.tokenizer)} tokens"
        )
    return config, processor


def _check_memory(name: str, config: InfiniteVLConfig, device: torch.device, dtype: torch.dtype) -> None:
    costs, free = Costs(config, dtype), free_bytes(device)
    needed = costs.weight_bytes + KEPT * costs.state_bytes(0) + working_set(config, dtype)
    if free is not None and needed > 0.9 * free:
        kind = str(dtype).removeprefix("torch.")
        raise InfiniteVLError(
            f"{name} in {kind} needs {size(needed)} of memory, and {size(free)} are free on {device}"
            + ("" if dtype.itemsize <= 2 else ": try --dtype bfloat16")
        )


def _device(options: BenchOptions) -> torch.device:
    return parse_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _dtype(options: BenchOptions) -> torch.dtype:
    """As given; bfloat16 on a GPU, float32 on a CPU."""
    default = torch.float32 if _device(options).type == "cpu" else torch.bfloat16
    dtype = parse_dtype(options.dtype or default)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InfiniteVLError(f"unknown dtype {options.dtype!r}: use fp8, bfloat16, float32 or float64")
    return dtype
