"""The layers of the language model: two kinds of mixer, the MLP, the residual block."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from infinitevl import ops
from infinitevl.model.linear import Fp8Linear, Linear, joined, padded_width, project, project_and_norm, project_onto
from infinitevl.model.state import AttentionState, DeltaState
from infinitevl.ops.mixing import DeltaInputs, DeltaWeights, Operations, mix
from infinitevl.ops.rounding import Rounded
from infinitevl.ops.rows import rotate

DISPATCHED = Operations(ops.short_convolution, ops.gated_delta_rule, ops.gated_rms_norm)


@dataclass
class Chunk:
    """What all layers share about the tokens of one forward pass.

    cos, sin: [B, T, 1, head_dim / 2]; lengths: [B] real tokens a row (None: all T); seq_idx: [B, T] packed
    sequences; count: [B] tokens that the state has seen before this chunk (None without a state);
    slots: [B] the place of every row in the state, as in `ops` (None: row b is at b).
    """

    cos: Tensor
    sin: Tensor
    lengths: Tensor | None
    seq_idx: Tensor | None
    count: Tensor | None
    slots: Tensor | None = None


class RMSNorm(nn.Module):
    """rounded: whether what comes of it goes into products with weights in float8, and into nothing else."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps, self.rounded = eps, False

    def forward(self, x: Tensor) -> Any:
        """Tensor, or `Rounded` where `rounded`, as in `ops`."""
        return ops.rms_norm(x, self.weight, self.eps, rounded=self.rounded)


class Normed(NamedTuple):
    """What goes from block to block, x [..., hidden], with the norm of it that the next one begins with: one kernel
    adds and norms."""

    x: Tensor
    y: Any

    @classmethod
    def of(cls, x: "Tensor | Normed", norm: RMSNorm) -> "Normed":
        return x if isinstance(x, Normed) else cls(x, norm(x))


def bare(x: Tensor | Normed) -> Tensor:
    return x.x if isinstance(x, Normed) else x


def following(norm: RMSNorm) -> RMSNorm | None:
    """The norm, where a block may compute it for the next one: where nothing but results is wanted, since a block by
    itself, under checkpoints or compiled, is given and returns x alone."""
    return norm if torch.is_inference_mode_enabled() else None


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    joint: ClassVar = [("gate_proj", "up_proj")]
    into: ClassVar = "down_proj"

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False):
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor | Rounded, residual: Tensor | None = None, norm: Any = None) -> Any:
        """The sum with the residual; `Normed` where there is a norm of it."""
        y = self._inner(x)
        if residual is None or norm is None:
            return project_onto(residual, y, self.down_proj)
        return Normed(*project_and_norm(residual, y, self.down_proj, norm))

    def _inner(self, x: Tensor | Rounded) -> Tensor | Rounded:
        """[..., inner], or as wide as the padded rows of down's weight."""
        whole = joined((self.gate_proj, self.up_proj), padded_width(self.down_proj))
        if whole is None:
            return F.silu(self.gate_proj(x)) * self.up_proj(x)
        return ops.swiglu(x, *whole, rounded=isinstance(self.down_proj, Fp8Linear))


class Attention(nn.Module):
    """Softmax attention with rotary positions, over a window or over everything."""

    joint: ClassVar = [("q_proj", "k_proj", "v_proj")]

    def __init__(self, config: Any, kind: str):
        super().__init__()
        self.head_dim = config.head_dim
        self.window = config.sliding_window if kind == "sliding_attention" else None
        self.sinks = config.attention_sinks if kind == "sliding_attention" else 0
        inner, kv = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, inner, bias=True)
        self.k_proj = Linear(config.hidden_size, kv, bias=True)
        self.v_proj = Linear(config.hidden_size, kv, bias=True)
        self.o_proj = Linear(inner, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, chunk: Chunk, state: AttentionState | None, residual: Tensor, norm: RMSNorm
    ) -> tuple[Tensor, Any]:
        """x, residual: [B, T, hidden]. Reads the ring, then writes the chunk into it. Returns the residual with what
        was read, and `norm` of that."""
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in project(x, self.q_proj, self.k_proj, self.v_proj))
        seen = {"window": self.window, "sinks": self.sinks, "lengths": chunk.lengths}
        if state is not None and chunk.count is not None:
            o = ops.ring_attention(
                q, k, v, chunk.cos, chunk.sin, state.keys, state.values, chunk.count, **seen, slots=chunk.slots
            )
        else:
            q, k = rotate(q, chunk.cos, chunk.sin), rotate(k, chunk.cos, chunk.sin)
            o = ops.window_attention(q, k, v, **seen, seq_idx=chunk.seq_idx)
        return project_and_norm(residual, o.flatten(2), self.o_proj, norm)


class ShortConvolution(nn.Conv1d):
    """The weights [channels, 1, width] of a causal depthwise convolution with SiLU."""

    def __init__(self, channels: int, width: int):
        super().__init__(channels, channels, width, groups=channels, bias=False)


class GatedDeltaNet(nn.Module):
    """Gated DeltaNet (arXiv 2412.06464): a memory S [K, V] per head, decayed and corrected by every token.

    Under another `linear_rule` the memory is not corrected or not decayed; parameters without a use stay unused.
    """

    joint: ClassVar = [("q_proj", "k_proj", "v_proj", "g_proj", "a_proj", "b_proj")]

    def __init__(self, config: Any):
        super().__init__()
        hidden, heads = config.hidden_size, config.num_linear_heads
        self.heads, self.key_dim, self.value_dim = heads, config.linear_head_dim, config.linear_value_dim
        self.norm_eps, self.rule = config.norm_eps, config.linear_rule
        keys, values = heads * self.key_dim, heads * self.value_dim
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.q_proj = Linear(hidden, keys, bias=False)
        self.k_proj = Linear(hidden, keys, bias=False)
        self.v_proj = Linear(hidden, values, bias=False)
        self.a_proj = Linear(hidden, heads, bias=False)
        self.b_proj = Linear(hidden, heads, bias=False)
        self.g_proj = Linear(hidden, values, bias=False)
        self.q_conv1d = ShortConvolution(keys, config.conv_size)
        self.k_conv1d = ShortConvolution(keys, config.conv_size)
        self.v_conv1d = ShortConvolution(values, config.conv_size)
        self.o_norm = RMSNorm(self.value_dim, config.norm_eps)
        self.o_proj = Linear(values, hidden, bias=False)

    def forward(
        self, x: Tensor, chunk: Chunk, state: DeltaState | None, residual: Tensor, norm: RMSNorm
    ) -> tuple[Tensor, Any]:
        """x, residual: [B, T, hidden]. Reads the memory, then leaves the new one in its place. Returns as `Attention`
        does."""
        inputs = self._inputs(x)
        if state is not None and not torch.is_grad_enabled():
            o = ops.delta_mixer(
                inputs, self.weights, state.memory, state.tail,
                rule=self.rule, slots=chunk.slots, lengths=chunk.lengths, arrived=state.arrived,
                rounded=isinstance(self.o_proj, Fp8Linear),
            )  # fmt: skip
        else:
            o = self._mixed(inputs, chunk, state).flatten(2)
        return project_and_norm(residual, o, self.o_proj, norm)

    @property
    def weights(self) -> DeltaWeights:
        q, k, v = (c.weight[:, 0] for c in (self.q_conv1d, self.k_conv1d, self.v_conv1d))
        return DeltaWeights(q, k, v, self.A_log, self.dt_bias, self.o_norm.weight, self.norm_eps)

    def _inputs(self, x: Tensor) -> DeltaInputs:
        q, k, v, gate, a, b = project(x, self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.a_proj, self.b_proj)
        q, k, v, gate = (y.unflatten(-1, (self.heads, -1)) for y in (q, k, v, gate))
        return DeltaInputs(q, k, v, gate, a, b)

    def _mixed(self, inputs: DeltaInputs, chunk: Chunk, state: DeltaState | None) -> Tensor:
        """With gradients. Autograd keeps copies of the state, which is then written in place."""
        before = (None, None) if state is None else (state.memory.clone(), state.tail.clone())
        o, memory, tail = mix(
            DISPATCHED, inputs, self.weights, *before, rule=self.rule, lengths=chunk.lengths, seq_idx=chunk.seq_idx
        )
        if state is not None:
            state.memory.copy_(memory.detach())
            state.tail.copy_(tail.detach())
        return o


class DecoderLayer(GradientCheckpointingLayer):
    """x += mixer(norm(x)); x += mlp(norm(x))."""

    before_products: ClassVar = ("input_layernorm", "post_attention_layernorm")

    def __init__(self, config: Any, kind: str):
        super().__init__()
        self.self_attn = GatedDeltaNet(config) if kind == "linear_attention" else Attention(config, kind)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor | Normed, chunk: Chunk, state: Any = None, norm: RMSNorm | None = None) -> Any:
        """norm: the one after this layer; where it is given, `Normed` by it is returned."""
        x, y = Normed.of(x, self.input_layernorm)
        x, y = self.self_attn(y, chunk, state, x, self.post_attention_layernorm)
        return self.mlp(y, x, norm)
