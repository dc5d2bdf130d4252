"""What the kernels of the gated delta rule share about one chunk of one row and head."""

import triton
from triton import language as tl

CHUNK = tl.constexpr(64)
LEVELS = tl.constexpr(6)  # CHUNK is 2^LEVELS
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
def taps(weight, columns):
    """The four taps of a convolution's channels, from the oldest input's to the newest's, in float32."""
    whole = tl.load(weight + columns[:, None] * 4 + tl.arange(0, 4)[None, :]).to(tl.float32)
    even, odd = tl.split(tl.reshape(whole, [columns.shape[0], 2, 2]))
    oldest, old = tl.split(even)
    older, newest = tl.split(odd)
    return oldest, older, old, newest


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

    From blocks of one row on: two diagonal blocks with inverses X and Z and the block L between them are one, with
    inverse [X, 0; -Z L X, Z], for all pairs of blocks at once.
    EXACT: to float32; else to about 1e-3, with products of float16, whose range is enough: of unit keys and
    strengths to 1 no entry of an inverse exceeds 1.
    """
    i = tl.arange(0, CHUNK)
    x = tl.where(i[:, None] == i[None, :], 1.0, 0.0) - _between_blocks(lower, 0)
    for level in tl.static_range(1, LEVELS):
        below = _between_blocks(lower, level)
        if EXACT:
            x -= tl.dot(tl.dot(x, below, input_precision=PRECISION), x, input_precision=PRECISION)
        else:
            half = x.to(tl.float16)
            x -= tl.dot(tl.dot(half, below.to(tl.float16)).to(tl.float16), half)
    return x


@triton.jit
def _between_blocks(lower, level: tl.constexpr):
    """The blocks of 2^level rows that lie between the diagonal blocks 0 and 1, 2 and 3, ...; zeros elsewhere."""
    block = tl.arange(0, CHUNK) // (1 << level)
    pair = (block[:, None] // 2 == block[None, :] // 2) & (block[:, None] != block[None, :])
    return tl.where(pair, lower, 0.0)
