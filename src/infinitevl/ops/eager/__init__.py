"""The operations in plain PyTorch: chunked, differentiable, on any device."""

from infinitevl.ops.eager.attention import ring_attention, window_attention, write_ring
from infinitevl.ops.eager.convolution import short_convolution
from infinitevl.ops.eager.counters import advance
from infinitevl.ops.eager.delta_rule import gated_delta_rule
from infinitevl.ops.eager.groups import group_attention
from infinitevl.ops.eager.linear import linear, linear_norm, swiglu
from infinitevl.ops.eager.mixer import delta_mixer
from infinitevl.ops.eager.norm import gated_rms_norm, rms_norm
from infinitevl.ops.eager.patches import patches
from infinitevl.ops.eager.rotary import rotary_table

__all__ = [
    "advance",
    "delta_mixer",
    "gated_delta_rule",
    "gated_rms_norm",
    "group_attention",
    "linear",
    "linear_norm",
    "patches",
    "ring_attention",
    "rms_norm",
    "rotary_table",
    "short_convolution",
    "swiglu",
    "window_attention",
    "write_ring",
]
