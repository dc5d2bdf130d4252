"""What Prometheus reads."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TIMES = {
    "frame_lag": "From a frame's arrival to memory",
    "first_token": "From a question to the first token of its answer",
    "answer_seconds": "From a question to the end of its answer",
    "step_seconds": "Of a step of the engine",
}
BATCHES = {"batch_frames": "Frames taken in by a step", "batch_decode": "Answers that a step went on with"}
COUNTS = {
    "frames": "Frames taken into memory",
    "frames_dropped": "Frames that came faster than they could be taken",
    "frames_skipped": "Frames sooner than a stream's rate allows",
    "tokens": "Tokens written",
    "answers": "Answers that ended",
    "answers_failed": "Answers that ended with an error",
    "saves": "States written to the store",
    "saves_failed": "States that could not be written",
}


class Metrics:
    """A registry of the server's own. `observe` is what the engine tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._sinks: dict[str, Callable[[float], None]] = {}
        for name, text in TIMES.items():
            self._histogram(name, f"{name.removesuffix('_seconds')}_seconds", text, SECONDS)
        for name, text in BATCHES.items():
            self._histogram(name, name, text, ROWS)
        for name, text in COUNTS.items():
            self._sinks[name] = Counter(f"infinitevl_{name}", text, registry=self.registry).inc
        self.responses = Counter("infinitevl_responses", "HTTP responses", ["status"], registry=self.registry)
        self.sockets = Gauge("infinitevl_sockets", "WebSocket connections", registry=self.registry)

    def observe(self, name: str, value: float) -> None:
        """Count. Names that nobody asked for are ignored."""
        if sink := self._sinks.get(name):
            sink(value)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Something that is read when Prometheus asks."""
        Gauge(f"infinitevl_{name}", text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _histogram(self, name: str, shown: str, text: str, buckets: Iterable[float]) -> None:
        made = Histogram(f"infinitevl_{shown}", text, buckets=tuple(buckets), registry=self.registry)
        self._sinks[name] = made.observe
