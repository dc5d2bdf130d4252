"""Between the projections of a Gated DeltaNet layer, with a memory that is changed in place."""

from torch import Tensor

from infinitevl.ops.eager.convolution import short_convolution
from infinitevl.ops.eager.delta_rule import gated_delta_rule
from infinitevl.ops.eager.norm import gated_rms_norm
from infinitevl.ops.mixing import DeltaInputs, DeltaWeights, Operations, mix_in_place

OPERATIONS = Operations(short_convolution, gated_delta_rule, gated_rms_norm)


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
) -> Tensor:
    return mix_in_place(OPERATIONS, x, weights, memory, tail, rule=rule, slots=slots, lengths=lengths)
