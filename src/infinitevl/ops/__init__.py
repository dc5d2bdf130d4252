"""The operations of the model, each behind one dispatch function.

Every operation has a readable twin in `reference` (token by token, any floating dtype) and an `eager` PyTorch
version (chunked, differentiable, any device) with exactly the same signature, and some have a `triton` one, or one
by flash-linear-attention (`fla`), loaded when it is needed. `implementation` is the only place that chooses.

Shapes: B rows, T tokens, H heads, K key and V value width per head, C channels, D head width, G key/value heads.

Common arguments:

lengths: [B] int64 or None. Row b holds `lengths[b]` tokens followed by padding. Padding never reaches a state or
    another token; what it contains (even NaN) does not matter, and what comes out at it is unspecified but finite.
seq_idx: [B, T] integer or None. Sequences packed in a row are numbered, tokens of one sequence are neighbours.
    Nothing passes from one sequence to the next. An initial state belongs to the first, the final to the last.
backend: "reference", "eager", "triton", "fla", or None to choose by device, or what `using` prefers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from infinitevl.ops import eager
from infinitevl.ops.groups import Groups
from infinitevl.ops.mixing import DeltaInputs, DeltaWeights
from infinitevl.ops.rounding import Rounded

BACKENDS = {name: f"{__name__}.{name}" for name in ("reference", "eager", "triton", "fla")}
OPAQUE = {"gated_delta_rule"}  # operations whose kernels torch.compile calls as they are
_preferred: ContextVar[str | None] = ContextVar("preferred backend", default=None)


@contextmanager
def using(backend: str) -> Iterator[None]:
    """In this block and thread, `backend` computes what is called without one, as far as it can: it may lack some
    operations, which stay what they are without it. For comparisons of whole models. Raises ValueError.
    """
    _module(backend)
    token = _preferred.set(backend)
    try:
        yield
    finally:
        _preferred.reset(token)


def preferred() -> str | None:
    """What `using` prefers here."""
    return _preferred.get()


def implementation(op: str, device: torch.device, backend: str | None = None) -> Callable:
    """The function that computes `op` on `device`. Raises ValueError for a backend that does not exist or lacks it.

    Where neither the call nor `using` names one: on a GPU the Triton kernels, where there is one for the op and it
    takes the inputs, else eager. Where torch.compile is at work it makes kernels of its own, but of those in OPAQUE.
    """
    if backend is None and op not in OPAQUE and torch.compiler.is_compiling():
        return _function(op, "eager")
    name = backend or preferred()
    if backend is None and name is not None and not hasattr(_module(name), op):
        name = None
    if name is None:
        return _fastest(op) if device.type == "cuda" and _has_triton() else _function(op, "eager")
    return _function(op, name)


def _function(op: str, backend: str) -> Callable:
    function = getattr(_module(backend), op, None)
    if function is None:
        raise ValueError(f"backend {backend!r} has no {op}")
    return function


@cache
def _fastest(op: str) -> Callable:
    """The kernel for what it takes: it raises NotImplementedError, by shapes and dtypes alone, before it begins."""
    kernel, other = getattr(_module("triton"), op, None), _function(op, "eager")
    if kernel is None:
        return other

    def run(*args, **options):
        try:
            return kernel(*args, **options)
        except NotImplementedError:
            return other(*args, **options)

    return run


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _module(backend: str):
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    return eager if backend == "eager" else import_module(BACKENDS[backend])  # torch.compile cannot trace an import


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    *,
    delta: bool = True,
    lengths: Tensor | None = None,
    seq_idx: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated delta rule (Gated DeltaNet, arXiv 2412.06464), per head, with S: [K, V]:

        q, k = q / |q| * K^-0.5, k / |k|              |x| = sqrt(sum x^2 + 1e-6)
        S_t  = exp(g_t) S_{t-1}
        S_t += k_t (beta_t (v_t - S_t^T k_t))^T
        o_t  = S_t^T q_t

    q, k: [B, T, H, K] as the convolution leaves them (the normalisation happens here); v: [B, T, H, V];
    g: [B, T, H] log decay <= 0; beta: [B, T, H]; initial_state: [B, H, K, V] or None for zeros.
    delta False: v_t is written as it is, S_t += k_t (beta_t v_t)^T, which is gated linear attention.
    Returns o [B, T, H, V] in v's dtype and the final state in float32 (float64 where q is float64).
    """
    run = implementation("gated_delta_rule", q.device, backend)
    return run(q, k, v, g, beta, initial_state, delta=delta, lengths=lengths, seq_idx=seq_idx)


def short_convolution(
    x: Tensor,
    weight: Tensor,
    tail: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    seq_idx: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution of width W, then SiLU: y_t = silu(sum_j weight[:, j] x_{t - W + 1 + j}).

    x: [B, T, C]; weight: [C, W]; tail: [B, W - 1, C], the inputs just before x (None: zeros).
    Returns y [B, T, C] and the tail for the next call, the last W - 1 inputs.
    """
    run = implementation("short_convolution", x.device, backend)
    return run(x, weight, tail, lengths=lengths, seq_idx=seq_idx)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ring_k: Tensor | None = None,
    ring_v: Tensor | None = None,
    count: Tensor | None = None,
    *,
    window: int | None = None,
    sinks: int = 0,
    lengths: Tensor | None = None,
    seq_idx: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention of the tokens of a chunk to a ring of earlier tokens and to the chunk itself.

    Token i of a stream sees token j when j <= i and (i - j < window or j < sinks); window None sees all of them.
    Of packed sequences, each has its own first tokens as sinks.
    q: [B, T, H, D], k and v: [B, T, G, D] with H a multiple of G (query head h reads key/value head h // (H / G));
    ring_k, ring_v: [B, G, sinks + R, D] with R >= window - 1, read only, as `write_ring` fills them;
    count: [B] int64, tokens that went into the ring so far. Scores are scaled by D^-0.5.
    Returns [B, T, H, D].
    """
    run = implementation("window_attention", q.device, backend)
    return run(q, k, v, ring_k, ring_v, count, window=window, sinks=sinks, lengths=lengths, seq_idx=seq_idx)


def write_ring(
    ring_k: Tensor,
    ring_v: Tensor,
    k: Tensor,
    v: Tensor,
    count: Tensor,
    *,
    sinks: int = 0,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Write a chunk's keys and values [B, T, G, D] into the rings [B, G, sinks + R, D], in place.

    Token i of a stream goes to slot i while i < sinks, and to slot sinks + (i - sinks) % R after that.
    """
    run = implementation("write_ring", k.device, backend)
    run(ring_k, ring_v, k, v, count, sinks=sinks, lengths=lengths)


def group_attention(qkv: Tensor, cos: Tensor, sin: Tensor, groups: Groups, *, backend: str | None = None) -> Tensor:
    """Softmax attention of tokens to those of their group: of qkv [T, 3, H, D], queries and keys turned by the angles
    of cos and sin [T, 1, D / 2], which pair i with i + D / 2, values as they are. Scores are scaled by D^-0.5.

    qkv may be changed; cos and sin may be read while the kernel before is still at work: they are no results of the
    operations here. Returns [T, H, D].
    """
    return implementation("group_attention", qkv.device, backend)(qkv, cos, sin, groups)


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    ring_k: Tensor,
    ring_v: Tensor,
    count: Tensor,
    *,
    window: int | None = None,
    sinks: int = 0,
    lengths: Tensor | None = None,
    slots: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """All that an attention layer of a stream does between its products: `rotate` q and k by cos and sin,
    `window_attention` of them and v to the ring, then `write_ring`, in place.

    q, k, v: as the projections leave them, slices of one product perhaps; cos, sin: [B, T, 1, D / 2] of
    `rotary_table`; the rest as there. Returns [B, T, H, D].
    slots: [B] int64, the place of every row in rings [N, G, sinks + R, D], all different; None: row b is at b. A row
    with a negative slot rests: nothing of it is read or written, and its output is 0.
    """
    run = implementation("ring_attention", q.device, backend)
    return run(
        q, k, v, cos, sin, ring_k, ring_v, count, window=window, sinks=sinks, lengths=lengths, slots=slots
    )  # fmt: skip


def rotary_table(
    positions: Tensor, frequencies: Tensor, axes: Tensor, dtype: torch.dtype, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin, [B, T, 1, n] of `dtype`, of the angles positions[axes[i]] frequencies[i], exact for |p| < 2^45.

    positions: [3, B, T] int64; frequencies: [n] float32; axes: [n] int64 of 0, 1, 2.
    """
    return implementation("rotary_table", positions.device, backend)(positions, frequencies, axes, dtype)


def advance(
    run: Tensor,
    position: Tensor,
    count: Tensor,
    positions: Tensor,
    vision: Tensor,
    *,
    lengths: Tensor | None = None,
    slots: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Count a chunk into the counters [N] int64 of streams, in place:

        count    += length
        position  = max(position, largest position of the chunk + 1)
        run       = tokens after the chunk's last one of an image or video; run + length where it has none

    positions: [3, B, T] int64; vision: [B, T] bool, True at tokens of images and videos.
    slots: [B] int64, the place of every row, as in `ring_attention`.
    """
    step = implementation("advance", run.device, backend)
    step(run, position, count, positions, vision, lengths=lengths, slots=slots)


def linear(
    x: Tensor | Rounded,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """residual + x weight^T + bias. x: [..., K]; weight: [N, K]; bias: [N]; residual: [..., N].

    scale: [N] float32, of the rows of a weight in float8_e4m3fn (`rounding`); None: the weight is what it is. Kernels
    round x, too, where it has more than `rounding.FEW` rows.
    """
    return implementation("linear", weight.device, backend)(x, weight, bias, residual, scale)


def linear_norm(
    x: Tensor | Rounded,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    scale: Tensor | None,
    norm: Tensor,
    eps: float,
    *,
    rounded: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | Rounded]:
    """`linear`, and `rms_norm` of it by the weight `norm` [N]: both [..., N], the second as `rounded` says."""
    run = implementation("linear_norm", weight.device, backend)
    return run(x, weight, bias, residual, scale, norm, eps, rounded=rounded)


def swiglu(
    x: Tensor | Rounded,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    rounded: bool = False,
    backend: str | None = None,
) -> Tensor | Rounded:
    """silu(gate) up, where x weight^T + bias is gate and up side by side.

    x: [..., K]; weight: [2 N, K]; bias: [2 N]; scale: [2 N], as in `linear`. Returns [..., N], which may be `Rounded`
    where `rounded` says that it goes into a product with a weight in float8 next.
    """
    return implementation("swiglu", weight.device, backend)(x, weight, bias, scale, rounded=rounded)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, rounded: bool = False, backend: str | None = None
) -> Tensor | Rounded:
    """x / sqrt(mean x^2 + eps) * weight over the last dimension. x: [..., N]; weight: [N]; rounded: as in `swiglu`."""
    return implementation("rms_norm", x.device, backend)(x, weight, eps, rounded=rounded)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, *, backend: str | None = None) -> Tensor:
    """x / sqrt(mean x^2 + eps) * weight * silu(gate) over the last dimension. x, gate: [..., V]; weight: [V]."""
    return implementation("gated_rms_norm", x.device, backend)(x, gate, weight, eps)


def delta_mixer(
    x: DeltaInputs,
    weights: DeltaWeights,
    memory: Tensor,
    tail: Tensor,
    *,
    rule: str = "gated_delta",
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    arrived: Tensor | None = None,
    rounded: bool = False,
    backend: str | None = None,
) -> Tensor | Rounded:
    """What a Gated DeltaNet layer does between its projections, for streams that go on, without gradients:

        q, k, v = short_convolution of each
        g, beta = -exp(A_log) softplus(a + dt_bias), sigmoid(b)
        o       = gated_rms_norm(gated_delta_rule(q, k, v, g, beta), gate, norm, eps)

    memory: [N, H, K, V] float32 (float64 for float64 inputs) and tail: [N, W - 1, H (2 K + V)], the last inputs of
    q, k and v; both are changed in place.
    rule: "gated_delta"; "gated", without the delta correction; "plain", with neither correction nor decay.
    slots: [B] int64, the place in memory and tail of every row, all different; None: row b is at b. A row with a
    negative slot rests: nothing of it is read or changed.
    arrived: [N, H] int32 of zeros that go with the memory, and are zeros again afterwards; kernels count in them.
    None: they are made in every call.
    Returns o [B, T, H V], zeros at padding and in rows that rest; rounded: as in `swiglu`.
    """
    run = implementation("delta_mixer", memory.device, backend)
    return run(x, weights, memory, tail, rule=rule, slots=slots, lengths=lengths, arrived=arrived, rounded=rounded)


def patches(
    frames: Tensor,
    patch: int,
    merge: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    *,
    backend: str | None = None,
) -> Tensor:
    """Pictures, every T of them cut together into patches of `patch` pixels a side: (x / 255 - mean) / std.

    frames: uint8 [N, T, H, W, C], H and W multiples of patch * merge; mean, std: of every colour. Computed in float32.
    Returns [N H W / patch^2, C T patch^2] of `dtype`, by blocks of merge x merge patches, then inside them; each is
    [C, T, patch, patch], flattened.
    """
    return implementation("patches", frames.device, backend)(frames, patch, merge, mean, std, dtype)
