import pytest
import torch

from infinitevl import ops

X = torch.randn(1, 2, 1, 4)
CALLS = {
    "gated_delta_rule": lambda **backend: ops.gated_delta_rule(X, X, X, -X[..., 0].abs(), X[..., 0], **backend),
    "short_convolution": lambda **backend: ops.short_convolution(X[:, :, 0], torch.randn(4, 4), **backend),
    "window_attention": lambda **backend: ops.window_attention(X, X, X, **backend),
    "write_ring": lambda **backend: ops.write_ring(
        torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), X, X, torch.zeros(1, dtype=torch.int64), **backend
    ),
    "gated_rms_norm": lambda **backend: ops.gated_rms_norm(X, X, X[0, 0, 0], 1e-5, **backend),
}


@pytest.mark.parametrize("op", CALLS)
def test_backends(op: str):
    """Each backend is its own function; one that does not exist is an error, never a silent fallback."""
    functions = {ops.implementation(op, X.device, name) for name in ("reference", "eager")}
    assert len(functions) == 2
    CALLS[op](backend="reference")
    with pytest.raises(ValueError, match="unknown backend 'cuda-magic': choose one of reference, eager"):
        CALLS[op](backend="cuda-magic")
