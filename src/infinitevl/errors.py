"""The errors a user can cause, each told in one line."""


class InfiniteVLError(Exception):
    """A mistake of the user or of the input, told in one line."""


class VideoError(InfiniteVLError):
    """A video that cannot be opened or read any further; the line names the source and what is wrong."""


class FrameError(VideoError):
    """A frame handed in by the caller that is not a picture; raised even after good frames."""
