"""The gated delta rule in Triton: the chunks of the eager version, forward and backward.

Two kernels forward: `form_products` for every chunk at once, then `scan`, which carries a block of value columns of
the state through the chunks. The backward pass (`delta_rule_backward`) forms the products and the states again, so
that nothing but the inputs is kept for it.

Matrix products take their operands in bfloat16 where q is bfloat16, else in float32, and add in float32. The state
is float32, the running sum of the gates float64. On Hopper, Triton before 3.7.1 computes wrong products from the
transpose of another product's result, and the assembler may reuse the registers of a left operand too early in a
loop. So no result is transposed, and left operands in bfloat16 come from memory as they are.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infinitevl.ops.triton.delta_rule_backward import gradients
from infinitevl.ops.triton.delta_rule_forward import Inputs, form_products, scan


def unsupported(q: Tensor, v: Tensor, delta: bool = True) -> str | None:
    """Why these kernels cannot take such inputs; None where they can."""
    if not delta:
        return "the delta correction cannot be left out"
    if q.dtype not in (torch.bfloat16, torch.float32):
        return f"q is {q.dtype}, neither bfloat16 nor float32"
    widths = q.shape[-1], v.shape[-1]
    if any(n < 16 or n & (n - 1) for n in widths) or widths[0] > 128:
        return f"keys and values are {widths[0]} and {widths[1]} wide: powers of two from 16, keys to 128, are needed"
    return None


@torch.compiler.disable  # to trace the kernels would only take long
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
    """Raises NotImplementedError for what is `unsupported`. Gradients are of the first order."""
    reason = unsupported(q, v, delta)
    if reason:
        raise NotImplementedError(f"gated delta rule in Triton: {reason}")
    return _GatedDeltaRule.apply(q, k, v, g, beta, initial_state, lengths, seq_idx)


class _GatedDeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, g, beta, initial_state, lengths, seq_idx):
        ctx.save_for_backward(q, k, v, g, beta, initial_state, lengths, seq_idx)
        inputs = Inputs.of(q, k, v, g, beta, initial_state, lengths, seq_idx)
        with torch.cuda.device_of(q):
            return scan(inputs, form_products(inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o, d_final):
        saved = ctx.saved_tensors  # once: under gradient checkpointing they are made for one reading
        q, _, _, g, beta, initial_state, *_ = saved
        with torch.cuda.device_of(q):
            d_q, d_k, d_v, d_g, d_beta, d_state = gradients(Inputs.of(*saved), d_o, d_final)
        d_state = None if initial_state is None else d_state.to(initial_state.dtype)
        return d_q, d_k, d_v, d_g.to(g.dtype), d_beta.to(beta.dtype), d_state, None, None
