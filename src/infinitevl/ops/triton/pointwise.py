"""What lies between products at inference, in Triton: residual sum + RMSNorm, SwiGLU."""

import triton
import triton.language as tl


@triton.jit
def add_norm_kernel(
    x, y, bias, weight, total, out, M, N, x_row, y_row, y_part, total_row, out_row, eps,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """total = x + sum of y's parts + bias; out = RMSNorm(total) * weight; one row a program."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    mask = column < N
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    w = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    z = tl.load(x + row * x_row + column, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(PARTS):
        z += tl.load(y + part * y_part + row * y_row + column, mask=mask, other=0.0).to(tl.float32)
    if PARTS > 0:
        if bias is not None:
            z += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
        z = z.to(total.dtype.element_ty)
        tl.store(total + row * total_row + column, z, mask=mask)
        z = z.to(tl.float32)
    z *= tl.rsqrt(tl.sum(z * z, 0) / N + eps) * w
    tl.store(out + row * out_row + column, z, mask=mask)


@triton.jit
def swiglu_kernel(gate, up, out, N, gate_row, up_row, out_row, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out = silu(gate) up; a program has one row's BLOCK columns."""
    row, column = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < N
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    g = tl.load(gate + row * gate_row + column, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * out_row + column, g * tl.sigmoid(g) * u, mask=mask)
