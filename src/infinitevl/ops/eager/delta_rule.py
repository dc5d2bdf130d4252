"""The gated delta rule by chunks (after the WY form of Gated DeltaNet, arXiv 2412.06464, section 3.3).

Within a chunk, with c the running sum of g, Gamma_ij = exp(c_i - c_j) for j <= i, and S the state that enters:

    A     = (I + tril(diag(beta) k k^T * Gamma, -1))^-1 diag(beta)
    v_new = A (v - diag(exp(c)) k S)
    o     = diag(exp(c)) q S + tril(q k^T * Gamma) v_new
    S     = exp(c_last) S + (diag(exp(c_last - c)) k)^T v_new

Without the delta correction A is diag(beta) and nothing of k S is taken away: v_new = diag(beta) v.

Packed sequences cut Gamma, exp(c) and exp(c_last - c) wherever two tokens belong to different sequences. The
lengths of q and k are divided out of the products of [chunk, chunk], which are smaller than q and k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.rows import extend_sequence, valid_rows, work_dtype

CHUNK = 64


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
) -> tuple[Tensor, Tensor]:
    (batch, time, heads, key_width), value_width = q.shape, v.shape[-1]
    dtype, out_dtype, size = work_dtype(q), v.dtype, min(CHUNK, time)
    if lengths is not None:
        padding = ~valid_rows(lengths, time)[..., None]
        q, k, v = (x.masked_fill(padding[..., None], 0) for x in (q, k, v))
        g, beta = (x.masked_fill(padding, 0) for x in (g, beta))
    q, k, v, g, beta = (_chunks(x, size).to(dtype) for x in (q, k, v, g, beta))
    decay = _decay(g, None if seq_idx is None else _chunk_sequences(extend_sequence(seq_idx, lengths), size))
    state = q.new_zeros(batch, heads, key_width, value_width) if initial_state is None else initial_state
    products = _products(q, k, beta if delta else None, decay)
    o, state = _scan(v if delta else v * beta[..., None], products, state.to(dtype))
    o = o.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :time]
    return o.to(out_dtype), state


def _chunks(x: Tensor, size: int) -> Tensor:
    """[B, T, H, ...] -> [N, B, H, size, ...], zeros behind the last token."""
    short = -x.shape[1] % size
    if short:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, short))
    return x.unflatten(1, (-1, size)).transpose(2, 3).transpose(0, 1).contiguous()


def _chunk_sequences(seq_idx: Tensor, size: int) -> Tensor:
    """[B, T] -> [N, B, 1, size], the last token's sequence behind it."""
    last = seq_idx[:, -1:].expand(-1, -seq_idx.shape[1] % size)
    return torch.cat([seq_idx, last], dim=1).unflatten(1, (-1, size)).transpose(0, 1)[:, :, None]


@dataclass
class _Decay:
    """Decays of every chunk: from its token j to i, from the entering state, to the leaving one, between these."""

    between: Tensor  # [N, B, H, size, size]
    entering: Tensor  # [N, B, H, size]
    leaving: Tensor  # [N, B, H, size]
    carried: Tensor  # [N, B, H, 1]


def _decay(g: Tensor, seq: Tensor | None) -> _Decay:
    c = g.double().cumsum(-1)  # differences of float32 sums are off by 1e-2 behind a gate of -1e4
    last = c[..., -1:]
    causal = torch.ones(g.shape[-1], g.shape[-1], dtype=torch.bool, device=g.device).tril()
    difference = (c[..., :, None] - c[..., None, :]).to(g.dtype)
    c, last, rest = (x.to(g.dtype) for x in (c, last, last - c))
    if seq is None:
        return _Decay(_masked_exp(difference, causal), c.exp(), rest.exp(), last.exp())
    entered = torch.cat([seq[:1, ..., :1], seq[:-1, ..., -1:]])
    left = seq[..., -1:]
    return _Decay(
        _masked_exp(difference, causal & (seq[..., :, None] == seq[..., None, :])),
        c.exp() * (seq == entered),
        rest.exp() * (seq == left),
        last.exp() * (left == entered),
    )


def _masked_exp(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask, float("-inf")).exp()


@dataclass
class _Products:
    """What the scan multiplies with, per chunk and head. Without the delta correction there is no k and no a."""

    a: Tensor | None  # [N, B, H, size, size]
    kq_in: Tensor  # [N, B, H, 2 size, K]: k, then q, as they meet the entering state
    scores: Tensor  # [N, B, H, size, size]
    k_out: Tensor  # [N, B, H, size, K]
    carried: Tensor  # [N, B, H, 1]


def _products(q: Tensor, k: Tensor, beta: Tensor | None, decay: _Decay) -> _Products:
    """beta None: without the delta correction."""
    k_norm = _inverse_norm(k)
    q_norm = _inverse_norm(q) * q.shape[-1] ** -0.5
    columns = decay.between * k_norm[..., None, :]
    q_in = q * (q_norm * decay.entering)[..., None]
    return _Products(
        a=None if beta is None else _corrected(k, k_norm, beta, columns),
        kq_in=q_in if beta is None else torch.cat([k * (k_norm * decay.entering)[..., None], q_in], dim=-2),
        scores=q @ k.transpose(-1, -2) * columns * q_norm[..., None],
        k_out=k * (k_norm * decay.leaving)[..., None],
        carried=decay.carried,
    )


def _corrected(k: Tensor, k_norm: Tensor, beta: Tensor, columns: Tensor) -> Tensor:
    """The A of the equations."""
    interaction = (k @ k.transpose(-1, -2) * columns).tril(-1) * (beta * k_norm)[..., None]
    identity = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device).expand_as(interaction)
    inverse = torch.linalg.solve_triangular(interaction, identity, upper=False, unitriangular=True)
    return inverse * beta[..., None, :]


def _inverse_norm(x: Tensor) -> Tensor:
    """1 / sqrt(sum x^2 + 1e-6) over the last dimension."""
    return torch.rsqrt(torch.linalg.vecdot(x, x) + 1e-6)


def _scan(v: Tensor, p: _Products, state: Tensor) -> tuple[Tensor, Tensor]:
    """Carry the state [B, H, K, V] through the chunks. Returns o [N, B, H, size, V] and the last state.

    v: diag(beta) v where there is no `a`, which would do that.
    """
    size, shape, state = v.shape[-2], state.shape, state.flatten(0, 1)
    # unbound, since the gradient of indexing is a tensor of zeros for all chunks, for every chunk
    kq_in, scores, k_out, carried, v_in = (
        x.flatten(1, 2).unbind() for x in (p.kq_in, p.scores, p.k_out, p.carried[..., None], v)
    )
    a = None if p.a is None else p.a.flatten(1, 2).unbind()
    outputs = []
    for n, v_new in enumerate(v_in):
        *k_state, q_state = torch.bmm(kq_in[n], state).split(size, dim=1)
        if a is not None:
            v_new = torch.bmm(a[n], v_new - k_state[0])
        outputs.append(torch.baddbmm(q_state, scores[n], v_new))
        state = torch.baddbmm(carried[n] * state, k_out[n].transpose(1, 2), v_new)
    return torch.stack(outputs).unflatten(1, shape[:2]), state.unflatten(0, shape[:2])
