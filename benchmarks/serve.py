"""Many streams and questions against a server: lag, answers, losses, fairness, and its memory over time.

python benchmarks/serve.py --start [--streams 32] [--fps 1] [--clients 4] [--seconds 600] [--overload 4] [--soak]
python benchmarks/serve.py --url http://127.0.0.1:8000 [--key KEY] [--pid PID]

--start serves the model in the box (or --model) from a folder of its own, after the engine alone has shown what it can
do without HTTP: the ceiling of frames a second. Frames are sent when they are due, however late the server is, and lag
counts from then. --soak also forks, saves, cancels, hangs up and sends rubbish all the time, and in 5 minutes or more
memory must not grow.
"""

import argparse
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from harness import report, tabulate
from infinitevl.client import ClientError
from serve_load import Load
from serve_results import draw, over_time, percentiles, show, summary
from serve_start import ceiling, jpegs, started

WARM_UP = 60.0  # seconds, at most, and a quarter of the run
GROWTH, JUDGED = 1.0, 300.0  # MiB a minute that a soak lets pass; in less seconds memory has not settled


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key")
    parser.add_argument("--pid", type=int, help="of a server that runs already: its memory is watched")
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--model", default=os.environ.get("INFINITEVL_MODEL"), help="of --start")
    parser.add_argument("--slots", type=int, default=8, help="of --start")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=4, help="that ask without a pause")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--overload", type=float, default=1.0, help="multiplies the frame rate")
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--frames", choices=("world", "random"), default="world")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--alone", type=float, default=10.0, help="seconds of the engine alone; 0: not at all")
    parser.add_argument("--out", type=Path, help="a picture of lag and memory over time")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    pictures, alone = jpegs(given.frames, given.size), None
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "server.log"
        if given.start:
            alone = ceiling(given, pictures) if given.alone else None
            with started(given, output) as (url, pid):
                log = Load(given, url, pid, pictures).run()
            log.errors |= Counter(re.findall(r"^(?:Traceback|\w*Error\b.*)", output.read_text(), re.MULTILINE))
        else:
            log = Load(given, given.url, given.pid, pictures).run()
    warm = min(WARM_UP, given.seconds / 4)
    facts = summary(given, log, warm, alone)
    if given.soak and given.seconds >= JUDGED and facts.get("growth_mib_per_min", 0.0) > GROWTH:
        facts["errors"]["memory grows"] = 1
    if given.out:
        draw(log, given.seconds, given.out)
    show(facts)
    late = np.asarray(log.at) >= warm
    asked = np.asarray(log.asked_at) >= warm
    rows = [
        percentiles("frame: due to acknowledged", np.asarray(log.lags)[late]),
        percentiles("frame: arrived to memory (lag_ms)", np.asarray(log.server_lags)[late]),
        percentiles("answer: first piece", np.asarray(log.firsts)[asked]),
        percentiles("answer: whole", np.asarray(log.wholes)[asked]),
    ]
    parts = over_time(log, given.seconds)
    tabulate("over time", parts)
    report("serve", rows, **facts, over_time=parts)
    return 1 if facts["errors"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClientError, RuntimeError, ProcessLookupError) as error:
        print(f"serve: {error}", file=sys.stderr)
        sys.exit(1)
