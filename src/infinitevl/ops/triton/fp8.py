"""Numbers in float8 on a GPU: rounding rows, and cuBLAS's products of two sides in float8, on tensor cores that do
twice as many of them. Products in tiles, and of few rows, which stay as they are, are in `linear`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from infinitevl.ops.rounding import FEW, FP8, LARGEST, SMALLEST, Rounded
from infinitevl.ops.triton.launch import launches

LARGEST_, SMALLEST_ = tl.constexpr(LARGEST), tl.constexpr(SMALLEST)
ALIGNED = 16  # bytes of a row, and rows of a weight, that cuBLAS asks for
TILED = 64  # rows up to which tiles take weights of any size


def unfit(rows: int, weight: Tensor) -> str | None:
    """Why a weight in float8 cannot be multiplied with so many rows here; None where it can."""
    if not knows_fp8(weight):
        return "this GPU has no products of float8"
    odd = any(size % ALIGNED for size in (*weight.shape, weight.stride(0)))
    return f"sizes must be multiples of {ALIGNED} in float8" if odd and rows > TILED else None


def takes_rounded(x: Tensor, rows: int) -> bool:
    """Whether so many rows made of x are multiplied as `Rounded` with weights in float8."""
    return rows > FEW and x.dtype == torch.bfloat16 and knows_fp8(x)


def knows_fp8(x: Tensor) -> bool:
    """Whether the device of x has them: Hopper and later."""
    return x.device.type == "cpu" or launches(x)[0]


def product(x: Rounded, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
    """x [M, K], weight [N, K] -> [M, N] bfloat16. Sums are kept in fewer bits than float32's (`use_fast_accum`)."""
    return torch._scaled_mm(
        x.values, weight.t(), x.scale[:, None], scale[None], bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def round_rows(x: Tensor) -> Rounded:
    """`rounding.round_rows` of x [M, K] in one launch."""
    m, k = x.shape
    out, block = empty(m, k, x.device), triton.next_power_of_2(k)
    early, options = launches(x)
    with torch.cuda.device_of(x):
        _round_kernel[(m,)](
            x, *out, k, x.stride(0), BLOCK=block, EARLY=early, num_warps=warps_of(block), **options
        )  # fmt: skip
    return out


def empty(rows: int, width: int, device: torch.device) -> Rounded:
    values = torch.empty(rows, width, dtype=FP8, device=device)
    return Rounded(values, torch.empty(rows, dtype=torch.float32, device=device))


def warps_of(block: int) -> int:
    """Of a program that takes a row of so many numbers at once."""
    return min(max(block // 512, 1), 16)


@triton.jit
def put_row(out, scale, row, column, y, N):
    """Write y, one row of N, to out: as it is, or in float8, with its scale, where there is a place for that."""
    if scale is not None:
        s = scale_of(tl.max(tl.abs(y), 0))
        tl.store(scale + row, s)
        y /= s
    tl.store(out + row * N + column, y.to(out.dtype.element_ty), mask=column < N)


@triton.jit
def scale_of(largest):
    """Of a row whose largest number, without its sign, is this one."""
    return tl.maximum(largest / LARGEST_, SMALLEST_)


@triton.jit
def _round_kernel(x, out, scale, K, x_row, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    y = tl.load(x + row * x_row + column, mask=column < K, other=0.0).to(tl.float32)
    put_row(out, scale, row, column, y, K)
