"""The gated delta rule by flash-linear-attention, where it is installed: for comparisons, forward only."""

import torch
from torch import Tensor


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
    """Raises NotImplementedError for padded or packed rows and without the delta correction."""
    if not delta or lengths is not None or seq_idx is not None:
        raise NotImplementedError("gated delta rule by fla: no padding, no packing, not without the delta correction")
    from fla.ops import gated_delta_rule as fla  # pyright: ignore[reportMissingImports]

    run = fla.fused_recurrent_gated_delta_rule if q.shape[1] == 1 else fla.chunk_gated_delta_rule
    options = {"initial_state": initial_state, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
    return run(q, k, v, g=g, beta=beta, **options)
