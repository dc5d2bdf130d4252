"""What a stream's memory does by flash-linear-attention, where it is installed: for comparisons, forward only."""

from dataclasses import replace

import torch
from torch import Tensor

from infinitevl.ops.eager.mixer import OPERATIONS
from infinitevl.ops.mixing import DeltaInputs, DeltaWeights, mix_in_place
from infinitevl.ops.rows import valid_rows


@torch.no_grad()
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
    """Padding becomes tokens that neither decay nor write. Raises NotImplementedError for packed rows and without the
    delta correction."""
    if not delta or seq_idx is not None:
        raise NotImplementedError("gated delta rule by fla: no packing, not without the delta correction")
    from fla.ops import gated_delta_rule as fla  # pyright: ignore[reportMissingImports]

    if lengths is not None:
        valid = valid_rows(lengths, q.shape[1])[..., None]
        q, k, v = (x.masked_fill(~valid[..., None], 0) for x in (q, k, v))
        g, beta = (x.masked_fill(~valid, 0) for x in (g, beta))
    run = fla.fused_recurrent_gated_delta_rule if q.shape[1] == 1 else fla.chunk_gated_delta_rule
    options = {"initial_state": initial_state, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
    return run(q, k, v, g=g, beta=beta, **options)


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
    """The rule alone by fla; convolutions and norm by PyTorch."""
    run = replace(OPERATIONS, gated_delta_rule=gated_delta_rule)
    return mix_in_place(run, x, weights, memory, tail, rule=rule, slots=slots, lengths=lengths)
