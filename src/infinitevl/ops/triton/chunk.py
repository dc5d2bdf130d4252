"""What the kernels of the gated delta rule share about one chunk of one row and head."""

import triton
from triton import language as tl

CHUNK = tl.constexpr(64)
BLOCK = tl.constexpr(16)  # rows of the inverse that are substituted one by one
PRECISION = tl.constexpr("tf32x3")  # of products of float32
# Of every token, in float32: how its key and its query meet the entering state, how its key meets the leaving one
# (each with the vector's length divided out), beta, and how the entering state meets the leaving one.
FACTORS = tl.constexpr(5)


@triton.jit
def row_length(lengths, row, T):
    """The tokens of a row that are no padding."""
    if lengths is None:
        return T
    else:  # noqa: RET505, one function has one type of result for Triton unless the branch is known
        return tl.load(lengths + row).to(tl.int32)


@triton.jit
def tokens_of(n, row, length, T):
    """Where the tokens of a row's chunk n lie among those of all rows, and which of them are real."""
    at = tl.arange(0, CHUNK) + n * CHUNK
    return row.to(tl.int64) * T + at, at < length


@triton.jit
def load_rows(x, tokens, stride, columns, real):
    """x[tokens, columns], zeros where not real."""
    return tl.load(x + tokens[:, None] * stride + columns[None, :], mask=real[:, None], other=0.0)


@triton.jit
def load_square(x, chunk):
    """The [CHUNK, CHUNK] matrix of a chunk."""
    i = tl.arange(0, CHUNK)
    return tl.load(x + chunk * CHUNK * CHUNK + i[:, None] * CHUNK + i[None, :])


@triton.jit
def inverse_norm(x):
    """1 / sqrt(sum x^2 + 1e-6) of every row, in float32."""
    x = x.to(tl.float32)
    return 1 / tl.sqrt(tl.sum(x * x, axis=1) + 1e-6)


@triton.jit
def load_gates(g, row, head, start, length, T, H):
    """g of a chunk, 0 at padding."""
    at = start + tl.arange(0, CHUNK)
    return tl.load(g + (row.to(tl.int64) * T + at) * H + head, mask=at < length, other=0.0)


@triton.jit
def place(slots, lengths, row, T):
    """Where a row's memory lies (negative: nowhere) and how many tokens are real."""
    slot = row
    if slots is not None:
        slot = tl.load(slots + row)
    return slot, row_length(lengths, row, T)


@triton.jit
def gates(a, b, A_log, dt_bias, real):
    """beta and g of some tokens; 0 and 0 at padding."""
    dt = tl.load(a, mask=real, other=0.0).to(tl.float32) + tl.load(dt_bias).to(tl.float32)
    dt = tl.where(dt > 20, dt, tl.log(1 + tl.exp(tl.minimum(dt, 20))))
    strength = tl.sigmoid(tl.load(b, mask=real, other=0.0).to(tl.float32))
    decay = -tl.exp(tl.load(A_log).to(tl.float32)) * dt
    return tl.where(real, strength, 0.0), tl.where(real, decay, 0.0)


@triton.jit
def decays(gates, seq_idx, row, start, length, T):
    """Gamma [CHUNK, CHUNK], exp(c) and exp(c_last - c) [CHUNK], exp(c_last), cut between sequences; float32.

    c in float64: differences of float32 sums are off by 1e-2 behind a gate of -1e4.
    """
    i = tl.arange(0, CHUNK)
    row = row.to(tl.int64) * T
    gates = gates.to(tl.float64)
    c, last = tl.cumsum(gates, axis=0), tl.sum(gates, axis=0)
    seen = i[:, None] >= i[None, :]
    entering, leaving, carried = (
        tl.exp(c.to(tl.float32)),
        tl.exp((last - c).to(tl.float32)),
        tl.exp(last.to(tl.float32)),
    )
    if seq_idx is not None:
        own = tl.load(seq_idx + row + tl.minimum(start + i, length - 1))
        entered = tl.load(seq_idx + row + tl.maximum(start - 1, 0))
        left = tl.load(seq_idx + row + tl.minimum(start + CHUNK, length) - 1)
        seen = seen & (own[:, None] == own[None, :])
        entering = tl.where(own == entered, entering, 0.0)
        leaving = tl.where(own == left, leaving, 0.0)
        carried = tl.where(left == entered, carried, 0.0)
    between = tl.where(seen, (c[:, None] - c[None, :]).to(tl.float32), float("-inf"))
    return tl.exp(between), entering, leaving, carried


@triton.jit
def unit_inverse(lower, EXACT: tl.constexpr):
    """(I + lower)^-1 of a strictly lower triangular [CHUNK, CHUNK] matrix.

    EXACT: to float32; else to about 1e-3, with products of float16, whose range is enough: of unit keys and
    strengths to 1 no entry of an inverse exceeds 1.

    The diagonal blocks by eliminating column after column, in all blocks at once; then two diagonal blocks with
    inverses X and Z and the block L between them are one, with inverse [X, 0; -Z L X, Z].
    """
    COUNT: tl.constexpr = CHUNK // BLOCK
    b, r, i = tl.arange(0, COUNT), tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    diagonal = (b[:, None] == b[None, :])[:, None, :, None]
    blocks = tl.sum(tl.where(diagonal, tl.reshape(lower, [COUNT, BLOCK, COUNT, BLOCK]), 0.0), axis=2)
    x = tl.where((r[:, None] == r[None, :])[None, :, :], 1.0, tl.zeros_like(blocks))
    for j in range(BLOCK - 1):
        column = tl.sum(tl.where((r == j)[None, None, :], blocks, 0.0), axis=2, keep_dims=True)
        pivot = tl.sum(tl.where((r == j)[None, :, None], x, 0.0), axis=1, keep_dims=True)
        x -= column * pivot
    x = tl.reshape(tl.where(diagonal, x[:, :, None, :], 0.0), [CHUNK, CHUNK])
    for level in tl.static_range(2):
        block = i // (BLOCK << level)
        pair = (block[:, None] // 2 == block[None, :] // 2) & (block[:, None] != block[None, :])
        below = tl.where(pair, lower, 0.0)
        if EXACT:
            x -= tl.dot(tl.dot(x, below, input_precision=PRECISION), x, input_precision=PRECISION)
        else:
            half = x.to(tl.float16)
            x -= tl.dot(tl.dot(half, below.to(tl.float16)).to(tl.float16), half)
    return x
