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


TRAINING = ("accelerate", "peft", "datasets")  # packages that training alone needs


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
    except ModuleNotFoundError as error:
        if error.name not in TRAINING:
            raise
        code = _complain(f"{error.name} is missing: pip install 'infinitevl[train]'")
    except OSError as error:  # a full or read-only disk, a file where a folder is to be
        code = _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
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


def device_options(command: Any) -> Any:
    """--device and --dtype."""
    command = click.option("--dtype", help="fp8, bfloat16, float32 or float64.  [default: by device]")(command)
    return click.option("--device", help="cpu, cuda, cuda:1, ...  [default: a GPU where there is one]")(command)


def model_options(command: Any) -> Any:
    """--model, --device and --dtype."""
    return click.option(
        "--model", envvar="INFINITEVL_MODEL", help="Folder or hub id.  [default: the StreamWorld model in the box]"
    )(device_options(command))


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


@commands.command(short_help="Serve the model to many streams and clients.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; others need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option(
    "--api-key", "api_keys", multiple=True, metavar="KEY", help="Who may use it; also INFINITEVL_API_KEYS=A,B."
)
@click.option("--state-dir", metavar="FOLDER", help="Streams survive restarts here; one server a folder.")
@click.option("--replicas", type=AT_LEAST_1, help="Many, on a Ray cluster; --state-dir may be s3://BUCKET/FOLDER.")
@click.option("--slots", type=AT_LEAST_1, default=8, show_default=True, help="Streams on the device at once.")
@click.option("--max-streams", type=AT_LEAST_1, default=256, show_default=True, help="Streams in all.")
@click.option("--streams-per-key", type=AT_LEAST_1, default=64, show_default=True, help="Streams of a key.")
@click.option("--questions-per-key", type=AT_LEAST_1, default=16, show_default=True, help="Answered at once.")
@click.option("--max-body", type=AT_LEAST_1, default=32, show_default=True, help="MiB of a request or a frame.")
@click.option("--max-upload", type=AT_LEAST_1, default=1024, show_default=True, help="MiB of a video.")
@click.option("--save-every", type=AT_LEAST_0, default=30.0, show_default=True, help="Seconds between saves.")
@click.option("--allow-source", multiple=True, metavar="PREFIX", help="rtsp://HOST/, https://HOST/PATH or a folder.")
@model_options
def serve(**options: Any) -> int:
    """Serve the model over HTTP and WebSockets: OpenAI's API, and endless streams with questions.

    \b
    infinitevl serve                                      for this machine; a page to look at is at the address
    infinitevl serve --host 0.0.0.0 --api-key KEY         for others
    infinitevl serve --allow-source rtsp://camera/        watches cameras itself, these and no others

    Streams are parked in --state-dir [default: ~/.local/state/infinitevl] when it ends, and go on when it starts.
    """
    from infinitevl.commands.serve import ServeOptions, run

    return run(ServeOptions(**options))


@commands.group("client", short_help="Use a server: push frames, ask, fork, snapshot.")
def client_group() -> None:
    """Use the streams of a server that `infinitevl serve` runs, here or elsewhere."""


def server_options(command: Any) -> Any:
    """--url and --key."""
    for option in (
        click.option("--key", envvar="INFINITEVL_API_KEY", help="Its API key.  [env: INFINITEVL_API_KEY]"),
        click.option(
            "--url", envvar="INFINITEVL_URL", default="http://127.0.0.1:8000", show_default=True,
            help="Where it is.  [env: INFINITEVL_URL]",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@client_group.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on standard output.")
@server_options
def client_list(**options: Any) -> int:
    """The streams."""
    from infinitevl.commands.client import run_list

    return run_list(**options)


@client_group.command("watch", short_help="Push the frames of SOURCE to a stream, and ask on the way.")
@click.argument("source")
@click.option("--stream", "id", metavar="ID", help="Go on with this one.  [default: a new one]")
@click.option("--name", help="Of a new stream.")
@click.option("--fps", type=float, default=2.0, show_default=True, help="Frames a second to take in.")
@click.option("--ask", "questions", multiple=True, metavar='"[TIME:] QUESTION"', help="May be repeated.")
@click.option("--max-tokens", type=AT_LEAST_1, default=128, show_default=True, help="Longest answer.")
@click.option("--live", is_flag=True, help="Play a file at its own speed and drop frames when late.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on standard output.")
@server_options
def client_watch(**options: Any) -> int:
    """Open SOURCE here, as `infinitevl stream` does, and push its frames to a stream of the server.

    The stream stays there for other questions; `infinitevl client delete` ends it.
    """
    from infinitevl.commands.client import WatchOptions, run_watch

    return run_watch(WatchOptions(**options))


@client_group.command("ask")
@click.argument("id")
@click.argument("question")
@click.option("--max-tokens", type=AT_LEAST_1, default=128, show_default=True, help="Longest answer.")
@click.option("--remember", is_flag=True, help="Question and answer become part of the stream.")
@server_options
def client_ask(**options: Any) -> int:
    """Ask about what the stream ID has in memory."""
    from infinitevl.commands.client import run_ask

    return run_ask(**options)


@client_group.command("snapshot")
@click.argument("id")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="Also write it here, for `stream --load-state`.")
@server_options
def client_snapshot(**options: Any) -> int:
    """Keep the memory of the stream ID as NAME on the server."""
    from infinitevl.commands.client import run_snapshot

    return run_snapshot(**options)


@client_group.command("fork")
@click.argument("id")
@click.option("--name", help="Of the new stream.")
@server_options
def client_fork(**options: Any) -> int:
    """Make a second stream with the memory of ID; its id is printed."""
    from infinitevl.commands.client import run_fork

    return run_fork(**options)


@client_group.command("delete")
@click.argument("id")
@server_options
def client_delete(**options: Any) -> int:
    """End the stream ID."""
    from infinitevl.commands.client import run_delete

    return run_delete(**options)


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
    workers=8 seed=1     processes that make data (by default all processors but one); seed of all
    sft.steps=200        a setting of a stage: teacher, layerwise, distillation, sft, long
    teacher=FOLDER       a Qwen2.5-VL checkpoint, instead of a teacher stage; 4b needs one
    sft.data=a.json,b.jsonl, long.data=4*sft.json,1*video.json
                         files of conversations, and weights, instead of StreamWorld; 4b needs them for every stage
    sft.data=a.json?root=MEDIA, sft.data=ORG/NAME?format=hf&subset=S&split=train
                         media in another folder; a dataset of the Hugging Face hub, streamed

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
    the last model, OUT/teacher/eval and OUT/sft/eval what the student is compared by. Under `accelerate launch`
    processes share training and test.
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
@click.option("--long-streams", type=AT_LEAST_1, help="How many long ones.  [default: 64; quick: 8]")
@click.option("--window-frames", type=AT_LEAST_1, help="Frames that count as a window.  [default: by the model]")
@click.option("--beside", metavar="NAME=FILE", help="results.json of another model, to be shown as NAME.")
@device_options
def evaluate(**options: Any) -> int:
    """Test MODEL, a folder or a hub id, on streams of StreamWorld that training never showed.  [default: in the box]

    Writes results.json, results.md and figures: accuracy in short clips, of facts by age and number, with and
    without the memory, and in a stream of half a million tokens.
    """
    from infinitevl.commands.evaluate import EvalOptions, run

    return run(EvalOptions(**options))


@commands.command(short_help="Measure MODEL's speed and memory against the machine's floor.")
@click.argument("model", required=False)
@click.option("--model", "named", help="The same as MODEL.")
@click.option("--config", metavar="4b|FOLDER", help="Sizes for --random-weights, instead of a MODEL.")
@click.option("--random-weights", is_flag=True, help="Speed does not depend on weights.")
@click.option(
    "--compare",
    multiple=True,
    type=click.Choice(["eager", "triton", "fla", "qwen2.5-vl"]),
    help="The same in another way; may be repeated.",
)
@click.option("--tokens", type=click.IntRange(0), help="Longest context.  [default: what a minute reaches, up to 1M]")
@click.option("--frames", type=AT_LEAST_1, help="To measure at each context.  [default: what a minute allows]")
@click.option("--side", type=click.IntRange(56, 4096), help="Of a frame, in pixels.  [default: the largest usual one]")
@click.option("--streamed", is_flag=True, help="Stream every token; do not move positions on.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True, help="Folder.")
@click.option("--json", "as_json", is_flag=True, help="Nothing but the JSON line on standard output.")
@device_options
def bench(**options: Any) -> int:
    """Measure a stream of MODEL, a folder or hub id, from an empty memory to a million tokens.  [default: in the box]

    \b
    Frames a second, milliseconds of frames and tokens, time to the first token of an answer, and memory, each with
    the machine's floor beside it. --compare measures in the same run
      eager        the plain PyTorch operations
      triton, fla  the Triton kernels; flash-linear-attention's, where it is installed
      qwen2.5-vl   transformers' Qwen2.5-VL of the same sizes with its growing cache, and the ideal engine for it

    Writes bench.json, bench.md and bench.png; the JSON is also the last line on standard output.
    """
    from infinitevl.commands.bench import BenchOptions, run

    return run(BenchOptions(**options))
