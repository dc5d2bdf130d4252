"""Between the host and a GPU, without either waiting for the other."""

from collections.abc import Callable

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`; from the host to a GPU without waiting for what that is doing."""
    if x.device == device or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def done(device: torch.device) -> Callable[[], None]:
    """What waits until the device has done all that it was told until now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def fetch(x: Tensor) -> Callable[[], list]:
    """Begin to copy x to the host; the function that is returned waits for that, not for what is launched later."""
    if not x.is_cuda:
        return x.tolist
    host, there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True), torch.cuda.Event()
    host.copy_(x, non_blocking=True)
    there.record()

    def wait() -> list:
        there.synchronize()
        return host.tolist()

    return wait
