from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from infinitevl import ops
from infinitevl.ops.groups import Groups

X = torch.randn(1, 2, 1, 4)
CALLS = {
    "gated_delta_rule": lambda **backend: ops.gated_delta_rule(X, X, X, -X[..., 0].abs(), X[..., 0], **backend),
    "short_convolution": lambda **backend: ops.short_convolution(X[:, :, 0], torch.randn(4, 4), **backend),
    "window_attention": lambda **backend: ops.window_attention(X, X, X, **backend),
    "write_ring": lambda **backend: ops.write_ring(
        torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), X, X, torch.zeros(1, dtype=torch.int64), **backend
    ),
    "group_attention": lambda **backend: ops.group_attention(
        torch.randn(2, 3, 1, 4), torch.randn(2, 1, 2), torch.randn(2, 1, 2), Groups(1), **backend
    ),
    "ring_attention": lambda **backend: ops.ring_attention(
        X,
        X,
        X,
        X[..., :2],
        X[..., :2],
        torch.zeros(1, 1, 4, 4),
        torch.zeros(1, 1, 4, 4),
        torch.zeros(1).long(),
        **backend,
    ),
    "rotary_table": lambda **backend: ops.rotary_table(
        torch.ones(3, 1, 2).long(), torch.ones(4), torch.zeros(4).long(), torch.float32, **backend
    ),
    "advance": lambda **backend: ops.advance(
        *torch.zeros(3, 1).long(), torch.ones(3, 1, 2).long(), torch.ones(1, 2).bool(), **backend
    ),
    "linear": lambda **backend: ops.linear(X, torch.randn(3, 4), **backend),
    "swiglu": lambda **backend: ops.swiglu(X, torch.randn(6, 4), **backend),
    "rms_norm": lambda **backend: ops.rms_norm(X, X[0, 0, 0], 1e-5, **backend),
    "gated_rms_norm": lambda **backend: ops.gated_rms_norm(X, X, X[0, 0, 0], 1e-5, **backend),
    "patches": lambda **backend: ops.patches(
        torch.ones(1, 1, 4, 4, 3).byte(), 2, 2, (0.5,) * 3, (0.2,) * 3, torch.float32, **backend
    ),
    "delta_mixer": lambda **backend: ops.delta_mixer(
        ops.DeltaInputs(X, X, X, X, X[..., 0], X[..., 0]),
        ops.DeltaWeights(*(torch.randn(4, 4) for _ in range(3)), torch.zeros(1), torch.zeros(1), X[0, 0, 0], 1e-5),
        torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 12), **backend,
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", CALLS)
def test_backends(op: str):
    """Each backend is its own function; one that does not exist is an error, never a silent fallback."""
    functions = {ops.implementation(op, X.device, name) for name in ("reference", "eager")}
    assert len(functions) == 2
    CALLS[op](backend="reference")
    with pytest.raises(ValueError, match="unknown backend 'cuda-magic': choose one of reference, eager"):
        CALLS[op](backend="cuda-magic")


def test_using_a_backend():
    """It holds in the block, for what it has and what names no other."""
    usual = {op: ops.implementation(op, X.device) for op in CALLS}
    with ops.using("reference"):
        assert all(ops.implementation(op, X.device).__module__ == "infinitevl.ops.reference" for op in CALLS)
        assert ops.implementation("write_ring", X.device, "eager").__module__ == "infinitevl.ops.eager.attention"
        with ops.using("fla"):
            assert ops.implementation("gated_delta_rule", X.device).__module__ == "infinitevl.ops.fla"
            assert ops.implementation("write_ring", X.device) == usual["write_ring"]
        assert ops.implementation("write_ring", X.device).__module__ == "infinitevl.ops.reference"
    with pytest.raises(RuntimeError), ops.using("reference"):
        raise RuntimeError
    assert {op: ops.implementation(op, X.device) for op in CALLS} == usual
    with pytest.raises(ValueError, match="unknown backend 'cuda-magic'"), ops.using("cuda-magic"):
        pass


def test_using_a_backend_leaves_other_threads_alone():
    with ops.using("reference"), ThreadPoolExecutor(1) as pool:
        other = pool.submit(ops.implementation, "write_ring", X.device).result()
    assert other.__module__ == "infinitevl.ops.eager.attention"


@pytest.mark.parametrize(
    ("change", "fits"),
    [({}, True), ({"dtype": torch.float64}, False), ({"head": 80}, False), ({"key": 256}, False),
     ({"taps": 3}, False), ({"rule": "plain"}, False)],
)  # fmt: skip
def test_models_that_run_in_slots(change: dict, fits: bool):
    from infinitevl.ops.triton import kinds

    given = {"dtype": torch.bfloat16, "head": 128, "key": 128, "value": 256, "taps": 4, "rule": "gated_delta"}
    assert kinds.in_slots(**{**given, **change}) is fits
