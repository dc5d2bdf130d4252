"""The command line. Every command imports what it needs when it runs."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from infinitevl import __version__
from infinitevl.errors import InfiniteVLError

NO_MODEL = "which model? give --model a folder or a hub id such as hustvl/InfiniteVL-LongSFT, or set INFINITEVL_MODEL"
AT_LEAST_0, AT_LEAST_1, TOP_P = click.FloatRange(0), click.IntRange(1), click.FloatRange(0, 1, min_open=True)
PIXELS, FILE = click.IntRange(784), click.Path(path_type=Path, exists=True, dir_okay=False)


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
        click.option("--model", envvar="INFINITEVL_MODEL", help="Folder or hub id of a checkpoint."),
    ):
        command = option(command)
    return command


def answer_options(command: Any) -> Any:
    """How answers are written."""
    for option in (
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the sampling."),
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

    return run(_required_model(StreamOptions(**options)))


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

    return run(_required_model(ChatOptions(**options)))


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
@click.argument("checkpoint", type=click.Path(path_type=Path))
def info(checkpoint: Path) -> int:
    """Layers, parameters and memory of CHECKPOINT, from its headers alone."""
    from infinitevl.commands.checkpoints import run_info

    return run_info(checkpoint)


@commands.command(short_help="Stream a clip, ask on the way, draw time and memory.")
@click.argument("video", required=False)
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder.")
@click.option("--model", envvar="INFINITEVL_MODEL", help="Checkpoint.  [default: small random weights]")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), default=8.0, show_default=True)
def demo(video: str | None, out: Path, model: str | None, fps: float) -> int:
    """Stream VIDEO (or a clip made on the spot), ask on the way, draw time and memory per frame."""
    from infinitevl.commands.demo import run

    return run(video, out, model, fps)


@commands.command(short_help="Train a small model on StreamWorld, through all stages.")
@click.argument("recipe")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def train(recipe: str, changes: tuple[str, ...]) -> int:
    """Train a small model on StreamWorld by RECIPE, nano or micro, through all stages of the paper.

    \b
    out=runs/RECIPE      where all is written; run again to go on where it was killed
    workers=8 seed=1     processes that make data; seed of all
    sft.steps=200        a setting of a stage: teacher, layerwise, distillation, sft, long

    Every stage writes OUT/STAGE/model, which every command loads, metrics.jsonl and loss.png.
    """
    from infinitevl.commands.train import run

    return run(recipe, changes)


def _required_model(options: Any) -> Any:
    if not options.model:
        raise InfiniteVLError(NO_MODEL)
    return options
