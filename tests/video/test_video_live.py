"""Live sources: the newest frames win, errors and ends arrive in order, threads stop."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from video_kit import MakeVideo, eventually, level, scene

from infinitevl.errors import InfiniteVLError, VideoError
from infinitevl.video.sources import open_video


class Camera:
    """An iterable that gives `count` frames at once, then does `after`."""

    def __init__(self, count: int, after: Any = None) -> None:
        self.count, self.after, self.done = count, after, threading.Event()

    def __iter__(self) -> Iterator[Any]:
        try:
            for index in range(self.count):
                yield index / 10, scene(index, 8, 16)
            if self.after:
                self.after()
        finally:
            self.done.set()


def threads() -> int:
    return sum(thread.name.startswith("video ") for thread in threading.enumerate())


def test_a_slow_watcher_gets_the_newest_and_the_rest_are_counted() -> None:
    camera = Camera(10)
    with open_video(camera, live=True, queue=2) as video:
        assert camera.done.wait(5)
        assert [level(frame) for _, frame in video] == [8, 9]
        assert (video.dropped, video.warning, video.live) == (8, None, True)


def test_sampling_comes_before_the_queue() -> None:
    camera = Camera(10)
    with open_video(camera, live=True, queue=5, fps=2) as video:
        assert camera.done.wait(5)
        assert [level(frame) for _, frame in video] == [0, 5] and video.dropped == 0


def test_a_watcher_who_keeps_up_loses_nothing() -> None:
    ready = threading.Semaphore(1)

    def camera() -> Iterator[np.ndarray]:
        for index in range(20):
            assert ready.acquire(timeout=5)
            yield scene(index, 8, 16)

    seen = []
    with open_video(camera(), live=True, queue=1) as video:
        for _, frame in video:
            seen.append(level(frame))
            ready.release()
    assert seen == list(range(20)) and video.dropped == 0


def test_live_arrays_without_times_happen_when_they_come() -> None:
    def camera() -> Iterator[np.ndarray]:
        for index in range(3):
            yield scene(index, 8, 16)
            time.sleep(0.05)

    with open_video(camera(), live=True, queue=9) as video:
        times = [at for at, _ in video]
    assert times[0] == 0 and 0.05 <= times[1] < times[2] < 2


def fail_with(error: Exception) -> Any:
    def after() -> None:
        raise error

    return after


def test_an_error_comes_after_the_frames_before_it() -> None:
    camera = Camera(2, fail_with(VideoError("the camera: unplugged")))
    with open_video(camera, live=True) as video:
        assert camera.done.wait(5)
        assert [level(frame) for _, frame in video] == [0, 1]
    assert video.warning == "the camera: unplugged; kept 2 frames, up to 0.10 s"


def test_a_foreign_error_of_the_thread_is_raised() -> None:
    camera = Camera(1, fail_with(ZeroDivisionError("a bug of the camera's own")))
    with open_video(camera, live=True) as video:
        assert next(video)[0] == 0
        with pytest.raises(ZeroDivisionError):
            next(video)


@pytest.mark.parametrize("given", [0, 2])
def test_a_stall_ends_what_began_and_fails_what_did_not(given: int) -> None:
    unblock = threading.Event()
    threading.Timer(0.4, unblock.set).start()
    line = "the frames given: no frame came for 0.2 s"
    with open_video(Camera(given, lambda: unblock.wait(10)), live=True, timeout=0.2) as video:
        if given:
            assert len(list(video)) == 2 and str(video.warning).startswith(f"{line}; kept 2 frames")
        else:
            with pytest.raises(VideoError, match=f"^{line}$"):
                next(video)


def test_close_stops_the_thread() -> None:
    before = threads()

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield scene(0, 8, 16)

    video = open_video(endless(), live=True)
    next(video)
    assert threads() == before + 1
    video.close()
    assert threads() == before and list(video) == []


def test_close_wakes_a_watcher_that_waits() -> None:
    hold = threading.Event()
    video = open_video(Camera(1, lambda: hold.wait(10)), live=True)
    seen: list[Any] = []
    watcher = threading.Thread(target=lambda: seen.extend(video))
    watcher.start()
    assert eventually(lambda: len(seen) == 1 or not watcher.is_alive())
    threading.Timer(0.1, hold.set).start()
    video.close()
    watcher.join(5)
    assert not watcher.is_alive() and len(seen) == 1 and video.warning is None


def test_a_file_played_live_takes_its_time(make_video: MakeVideo) -> None:
    path = make_video(frames=10)
    began = time.monotonic()
    with open_video(path, live=True, queue=20) as video:
        assert [level(frame) for _, frame in video] == list(range(10))
    assert 0.4 <= time.monotonic() - began < 3 and video.dropped == 0


def test_waiting_for_a_slow_folder_is_no_stall(tmp_path: Path) -> None:
    for index in range(2):
        Image.fromarray(scene(index, 8, 16)).save(tmp_path / f"{index}.png")
    with open_video(tmp_path, live=True, fps=2, timeout=0.1) as video:
        assert len(list(video)) == 2 and video.warning is None


def test_closing_a_file_played_live_does_not_wait_for_it(make_video: MakeVideo) -> None:
    before, began = threads(), time.monotonic()
    with open_video(make_video(frames=10, rate=1), live=True) as video:
        next(video)
    assert time.monotonic() - began < 3 and threads() == before


def test_a_queue_holds_at_least_one_frame() -> None:
    with pytest.raises(InfiniteVLError, match="queue must hold at least one frame"):
        open_video(Camera(1), live=True, queue=0)
