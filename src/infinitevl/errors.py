"""The errors a user can cause, each told in one line."""


class InfiniteVLError(Exception):
    """A mistake of the user or of the input, told in one line."""


class VideoError(InfiniteVLError):
    """A video that cannot be opened or read any further; the line names the source and what is wrong."""


class FrameError(VideoError):
    """A frame handed in by the caller that is not a picture; raised even after good frames."""


class NotFound(InfiniteVLError):
    """There is no stream or snapshot of that name."""


class Conflict(InfiniteVLError):
    """It cannot be done now: the name is taken, or something else is being done."""


class TooLarge(InfiniteVLError):
    """It is above a limit, which the line names."""


class Overloaded(InfiniteVLError):
    """There is no room for it now; later there may be."""


class StorageError(InfiniteVLError):
    """The store cannot be read or written; what was there before still is."""
