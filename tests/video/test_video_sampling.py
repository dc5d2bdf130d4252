"""The rules of time, pure."""

import subprocess
import sys
from fractions import Fraction

import pytest

from infinitevl.errors import InfiniteVLError
from infinitevl.video.sampling import Clock, Sampler


def kept(fps: float, times: list[float], **options: float) -> list[float]:
    sampler = Sampler(fps, **options)
    return [time for time in times if sampler.take(time)]


def by_the_rule(fps: Fraction, times: list[Fraction]) -> list[Fraction]:
    """The first time >= k/fps for every k, each once, in exact arithmetic."""
    found = {next((t for t in times if t >= k / fps), None) for k in range(int(times[-1] * fps) + 1)}
    return sorted(t for t in found if t is not None)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30), Fraction(24000, 1001), Fraction(359, 12), Fraction(7)])
@pytest.mark.parametrize("fps", [Fraction(1, 3), Fraction(1), Fraction(2), Fraction(3), Fraction(10), Fraction(25)])
def test_keeps_the_first_frame_at_or_after_every_multiple(rate: Fraction, fps: Fraction) -> None:
    times = [index / rate for index in range(120)]
    expected = [float(time) for time in by_the_rule(fps, times)]
    assert kept(float(fps), [float(time) for time in times]) == expected


def test_no_drift_over_ten_hours() -> None:
    rate = 30000 / 1001
    times = [index / rate for index in range(int(36_000 * rate))]
    assert len(kept(2, times)) == 72_000


def test_a_rate_above_the_source_keeps_every_frame_once() -> None:
    times = [index / 25 for index in range(100)]
    assert kept(1000, times) == times
    assert kept(25, times) == times


def test_slack_bridges_times_rounded_to_milliseconds() -> None:
    times = [round(index / 30, 3) for index in range(300)]
    assert kept(30, times, slack=1e-3) == times


def test_a_gap_is_one_frame_and_then_the_grid_goes_on() -> None:
    assert kept(1, [0.0, 0.5, 5.2, 5.5, 6.0, 6.9]) == [0.0, 5.2, 6.0]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_senseless_rate_is_told(fps: float) -> None:
    with pytest.raises(InfiniteVLError, match="fps must be a positive number"):
        Sampler(fps)


def test_clock_starts_at_nought_and_fills_what_is_missing() -> None:
    clock = Clock(0.5)
    stamps = [100.0, 100.4, None, 101.5, 90.0, 101.5, 103.0]
    assert [clock.at(s) for s in stamps] == pytest.approx([0.0, 0.4, 0.9, 1.5, 2.0, 2.5, 3.0])


def test_clock_without_any_timestamp_runs_at_its_rate() -> None:
    clock = Clock(0.25)
    assert [clock.at(None) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]


def test_clock_joins_timestamps_that_start_late() -> None:
    clock = Clock(0.25)
    assert [clock.at(s) for s in (None, None, 7.0, 7.25)] == [0.0, 0.25, 0.5, 0.75]


def test_sources_import_without_torch_and_sampling_without_pyav() -> None:
    check = (
        "import sys, infinitevl.video.sampling, infinitevl.video.live, infinitevl.video.pictures;"
        "assert 'av' not in sys.modules; import infinitevl.video.sources; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
