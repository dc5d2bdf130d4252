"""The command line. Every command imports what it needs when it runs."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from infinitevl import __version__
from infinitevl.errors import InfiniteVLError

AT_LEAST_0, AT_LEAST_1, TOP_P = click.FloatRange(0), click.IntRange(1), click.FloatRange(0, 1, min_open=True)
PIXELS, FILE = click.IntRange(784), click.Path(path_type=Path, exists=True, dir_okay=False)
SEED, SPLITS = click.IntRange(0, 2**63 - 1), click.Choice(["train", "validation", "test"])


def main() -> None:
    """Run a command. A user's mistake is one line on standard error and exit code 2.

    Where the reader of our output goes away, click ends the program quietly, with exit code 1.
    """
    # On a busy CPU, threads that spin while they wait make a frame 15 times slower. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # bytes that are no text are no reason to stop
    try:
        code = commands.main(prog_name="infinitevl", standalone_mode=False) or 0
    except InfiniteVLError as error:
        code = _complain(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        code = _complain(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        code = 130
    sys.exit(code)


def _complain(message: str) -> int:
    click.echo(f"infinitevl: {' '.join(message.split())}", err=True)
    return 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="infinitevl")
def commands() -> None:
    """A vision-language model that watches without end."""


def model_options(command: Any) -> Any:
    """--model, --device and --dtype."""
    for option in (
        click.option("--dtype", help="float32, bfloat16 or float64.  [default: by device]"),
        click.option("--device", help="cpu, cuda, cuda:1, ...  [default: a GPU where there is one]"),
        click.option(
            "--model", envvar="INFINITEVL_MODEL", help="Folder or hub id.  [default: the StreamWorld model in the box]"
        ),
    ):
        command = option(command)
    return command


def answer_options(command: Any) -> Any:
    """How answers are written."""
    for option in (
        click.option("--seed", type=SEED, help="Seed of the sampling."),
        click.option("--top-p", type=TOP_P, default=1.0, show_default=True, help="Keep the likeliest of that total."),
        click.option("--temperature", type=AT_LEAST_0, default=0.0, show_default=True, help="0 is greedy."),
        click.option("--max-tokens", type=AT_LEAST_1, default=128, show_default=True, help="Longest answer."),
    ):
        command = option(command)
    return command


@commands.command()
@click.argument("source")
@click.option("--ask", "questions", multiple=True, metavar='"[TIME:] QUESTION"', help="May be repeated.")
@click.option("--fps", type=float, default=2.0, show_default=True, help="Frames a second to take in.")
@click.option("--max-pixels", type=PIXELS, help="Largest frame after the resize; 784 pixels make a token.")
@click.option("--live", is_flag=True, help="Play a file at its own speed and drop frames when late.")
@click.option("--remember", is_flag=True, help="Questions and answers become part of the stream.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on standard output.")
@click.option("--save-state", type=click.Path(path_type=Path), help="Write the stream here at the end.")
@click.option("--load-state", type=FILE, help="Go on from a saved stream, at its rate and size of frames.")
@answer_options
@model_options
def stream(**options: Any) -> int:
    """Watch SOURCE and answer questions about it.

    SOURCE is a video file, a folder of pictures, an http, https or rtsp address, or - for standard input.
    A question "12.5: what is on the sign?" is asked 12.5 seconds into the video, one without a time at its end.
    With no --ask at all, questions are read from the keyboard while the video runs, or, where standard input is
    a file or a pipe, from its lines when the video has ended.
    """
    from infinitevl.commands.stream import StreamOptions, run

    return run(StreamOptions(**options))


@commands.command()
@click.argument("question")
@click.option("--image", "images", multiple=True, metavar="PATH", help="May be repeated.")
@click.option("--video", "videos", multiple=True, metavar="PATH", help="May be repeated.")
@click.option("--fps", type=float, default=2.0, show_default=True, help="Frames a second taken of videos.")
@click.option("--max-pixels", type=PIXELS, help="Largest picture or frame; 784 pixels make a token.")
@answer_options
@model_options
def chat(**options: Any) -> int:
    """Answer QUESTION about pictures and videos, given at once."""
    from infinitevl.commands.chat import ChatOptions, run

    return run(ChatOptions(**options))


@commands.command(short_help="Make an InfiniteVL student from a Qwen2.5-VL checkpoint.")
@click.argument("source", type=click.Path(path_type=Path), metavar="QWEN2_5_VL_DIR")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--window", type=click.IntRange(min=1), default=8192, show_default=True, help="Attention window.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of what cannot be inherited.")
def convert(source: Path, out: Path, window: int, seed: int) -> int:
    """Make an InfiniteVL student in OUT from a Qwen2.5-VL checkpoint."""
    from infinitevl.commands.checkpoints import run_convert

    return run_convert(source, out, window, seed)


@commands.command(short_help="Layers, parameters and memory of CHECKPOINT.")
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False, envvar="INFINITEVL_MODEL")
def info(checkpoint: Path | None) -> int:
    """Layers, parameters and memory of CHECKPOINT, from its headers alone; by default of the model in the box."""
    from infinitevl.commands.checkpoints import run_info
    from infinitevl.commands.console import boxed_model

    return run_info(checkpoint or boxed_model())


@commands.command(short_help="Stream a film, ask on the way, mark the answers, draw all.")
@click.argument("video", required=False)
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the film: each number is another.")
@click.option("--seconds", type=click.IntRange(4, 600), default=60, show_default=True, help="Length of the film.")
@click.option("--fps", type=float, default=8.0, show_default=True, help="Frames a second to take of VIDEO.")
@model_options
def demo(**options: Any) -> int:
    """Stream a film of StreamWorld, ask about now and about long ago, and draw accuracy, time and memory.

    The film is new to the model. It shows facts in its first seconds, and questions come to its end, when the
    facts have long left the attention window. With a VIDEO of your own, questions are general and not marked.
    """
    from infinitevl.commands.demo import DemoOptions, run

    return run(DemoOptions(**options))


@commands.group()
def data() -> None:
    """Make data to train and test on."""


@data.command(short_help="Write StreamWorld as mp4 and JSON Lines to OUT.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--count", type=AT_LEAST_1, default=100, show_default=True, help="Conversations.")
@click.option("--frames", type=AT_LEAST_1, default=64, show_default=True, help="Of each, 10 a second.")
@click.option("--questions", type=AT_LEAST_1, default=8, show_default=True, help="Of each, at most.")
@click.option("--split", type=SPLITS, default="train", show_default=True, help="No two splits share anything.")
@click.option("--seed", type=click.IntRange(0, 2**32), default=0, show_default=True, help="Of the first one.")
@click.option("--size", type=click.IntRange(112), default=112, show_default=True, help="Of a frame, in pixels.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Also draw questions of every kind, as a picture.")
def streamworld(**options: Any) -> int:
    """Write conversations about StreamWorld, a procedural video world, to OUT.

    OUT/SPLIT.jsonl has a conversation a line, in the form of real data, and OUT/videos what it is about.
    """
    from infinitevl.commands.data import DataOptions, run

    return run(DataOptions(**options))


@commands.command(short_help="Train a model through all stages: on StreamWorld, or on files.")
@click.argument("recipe")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def train(recipe: str, changes: tuple[str, ...]) -> int:
    """Train by RECIPE through all stages of the paper: nano or micro, small models on StreamWorld, or 4b, the paper's.

    \b
    out=runs/RECIPE      where all is written; run again to go on where it was killed
    workers=8 seed=1     processes that make data; seed of all
    sft.steps=200        a setting of a stage: teacher, layerwise, distillation, sft, long
    teacher=FOLDER       a Qwen2.5-VL checkpoint, instead of a teacher stage; 4b needs one
    sft.data=a.json,b.jsonl, long.data=4*sft.json,1*video.json
                         files of conversations, and weights, instead of StreamWorld; 4b needs them for every stage

    Every stage writes OUT/STAGE/model, which every command loads, metrics.jsonl and loss.png, and of files
    skipped.jsonl, what could not be used. Under `accelerate launch` processes share the rows of every batch.
    """
    from infinitevl.commands.train import run

    return run(recipe, changes)


@commands.command(short_help="Train, test and report, from nothing, in one go.")
@click.argument("recipe")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def speedrun(recipe: str, changes: tuple[str, ...]) -> int:
    """Train a small model by RECIPE, nano or micro, test it, and write a report: the whole paper in one command.

    \b
    eval=quick           how much is tested: quick, full or none  [default: full for nano, else quick]
    out=runs/RECIPE      where all is written; run again to go on where it was killed
    sft.steps=200        and whatever `infinitevl train` knows

    Writes OUT/report.md, report.json and losses.png next to what `infinitevl train` writes; OUT/eval has the test of
    the last model, OUT/teacher/eval and OUT/sft/eval what the student is compared by.
    """
    from infinitevl.commands.speedrun import run

    return run(recipe, changes)


@commands.command(short_help="Train variants of a recipe and compare them.")
@click.argument("recipe")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def ablate(recipe: str, changes: tuple[str, ...]) -> int:
    """Compare variants of RECIPE's student as the paper does: stages, attention layers, linear layers.

    \b
    out=runs/RECIPE-ablations   every variant and seed has a folder of its own there, and is done once
    variants=baseline,gated     some of them  [default: all]
    seeds=0,1,2                 of each  [default: 0]
    teacher=FOLDER              begin from this one  [default: train it first]
    long=true                   end with the long stage
    count=200                   questions of each kind
    sft.steps=100 workers=8     and whatever `infinitevl train` knows

    Once there is a teacher, processes with the same OUT and with variants or seeds of their own share the work; a
    last call for all of them only gathers. Writes OUT/ablations.md, .json and .png.
    """
    from infinitevl.commands.ablate import run

    return run(recipe, changes)


@commands.command("eval", short_help="Test MODEL on StreamWorld: perception, memory, long streams.")
@click.argument("model", required=False, envvar="INFINITEVL_MODEL")
@click.option("--out", type=click.Path(path_type=Path), default=Path("evaluation"), show_default=True, help="Folder.")
@click.option("--quick", is_flag=True, help="A small plan, for a look.")
@click.option("--count", type=AT_LEAST_1, help="Questions per accuracy.  [default: 2000; quick: 48]")
@click.option("--rows", type=AT_LEAST_1, help="Most streams in one batch.  [default: 512; quick: 64]")
@click.option("--workers", type=click.IntRange(0), help="Processes that make frames.  [default: by processors]")
@click.option("--long-tokens", type=click.IntRange(0), help="Longest stream.  [default: 500000; quick: 4096]")
@click.option("--window-frames", type=AT_LEAST_1, help="Frames that count as a window.  [default: by the model]")
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: a GPU where there is one]")
@click.option("--dtype", help="float32, bfloat16 or float64.  [default: by device]")
def evaluate(**options: Any) -> int:
    """Test MODEL, a folder or a hub id, on streams of StreamWorld that training never showed.  [default: in the box]

    Writes results.json, results.md and figures: accuracy in short clips, of facts by age and number, with and
    without the memory, and in a stream of half a million tokens.
    """
    from infinitevl.commands.evaluate import EvalOptions, run

    return run(EvalOptions(**options))
