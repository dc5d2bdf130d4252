"""The operations as Triton kernels."""

from infinitevl.ops.triton.attention import window_attention
from infinitevl.ops.triton.counters import advance
from infinitevl.ops.triton.delta_rule import gated_delta_rule
from infinitevl.ops.triton.finish import write_ring
from infinitevl.ops.triton.groups import group_attention
from infinitevl.ops.triton.linear import linear, linear_norm, swiglu
from infinitevl.ops.triton.mixer import delta_mixer
from infinitevl.ops.triton.norm import gated_rms_norm
from infinitevl.ops.triton.patches import patches
from infinitevl.ops.triton.pointwise import rms_norm
from infinitevl.ops.triton.ring import ring_attention
from infinitevl.ops.triton.rotary import rotary_table

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
    "swiglu",
    "window_attention",
    "write_ring",
]
