"""What the machine can do: timing, its ceilings, known or measured, and its free memory."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

# Published, without sparsity: bytes a second of memory, FLOP/s in bfloat16.
KNOWN = {
    "NVIDIA H200": (4.8e12, 989e12),
    "NVIDIA H100 80GB HBM3": (3.35e12, 989e12),
    "NVIDIA H100 PCIe": (2.0e12, 756e12),
    "NVIDIA A100-SXM4-80GB": (2.039e12, 312e12),
    "NVIDIA A100-SXM4-40GB": (1.555e12, 312e12),
    "NVIDIA L40S": (0.864e12, 362e12),
    "NVIDIA GeForce RTX 4090": (1.008e12, 165e12),
}


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second, read plus written; operations a second; where the two are from."""

    bytes_per_second: float
    flops: float
    source: str = "measured by a copy and a matrix product"

    def floor(self, operations: float, nbytes: float) -> float:
        """The least seconds that so many operations and bytes can take."""
        return max(operations / self.flops, nbytes / self.bytes_per_second)

    def best(self, other: "Ceilings") -> "Ceilings":
        """Of two measurements: what else runs on a machine only ever lowers them."""
        speeds = max(self.bytes_per_second, other.bytes_per_second), max(self.flops, other.flops)
        return Ceilings(*speeds, self.source)


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measured on this machine, by a large copy and a large matrix product: the fastest of several."""
    big = device.type == "cuda"
    source = torch.randn(2**30 if big else 2**25, device=device)
    target = torch.empty_like(source)
    copy = min(timed(lambda: target.copy_(source), device))
    n = 8192 if big else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = min(timed(lambda: a @ b, device, 7))
    return Ceilings(2 * source.nbytes / copy, 2 * n**3 / product)


def best_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The published ones of a GPU that is known, in the dtype that they are for; else measured."""
    name = device_name(device)
    if name in KNOWN and dtype in (torch.bfloat16, torch.float16):
        return Ceilings(*KNOWN[name], f"published for {name}")
    return ceilings(device, dtype)


def timed(run: Callable[[], object], device: torch.device, repeats: int = 15, warmup: int = 2) -> list[float]:
    """Seconds of each call, after warming up; on a GPU between events, so that launches do not count twice."""
    for _ in range(warmup):
        run()
    if device.type == "cuda":
        return _timed_cuda(run, repeats)
    return [clock(run, device) for _ in range(repeats)]


def _timed_cuda(run: Callable[[], object], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(stop) / 1000)
    return seconds


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int = 15) -> float:
    """Median seconds of a call."""
    return median(timed(run, device, repeats))


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call as its caller waits for them, until the device has finished."""
    began = perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - began


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on a device; None where the machine does not tell."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, for itself
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines)
    return next((int(words[1]) * 1024 for words in found if words[0] == "MemAvailable:"), None)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def machine(device: torch.device) -> str:
    name = device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"
