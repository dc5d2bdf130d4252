import pytest
import torch
from torch import Tensor

from helpers import assert_close, assert_same_gradients, poison, ragged, relative, segments, unpad
from infinitevl import ops

TIMES = (1, 3, 63, 64, 65, 100, 257)  # around the chunk of 64
VARIANTS = ("plain", "state", "lengths", "seq_idx", "lengths seq_idx", "state lengths seq_idx")
BATCH, HEADS, KEY, VALUE = 3, 2, 8, 12
Case = tuple[list[Tensor], Tensor | None, dict[str, Tensor]]


def gates(kind: str, *shape: int) -> Tensor:
    usual = -0.3 * torch.randn(shape).exp()
    match kind:
        case "usual":
            return usual
        case "keeps everything":
            return -1e-6 * torch.rand(shape)
        case "forgets":
            return -20 - 10 * torch.rand(shape)
        case "wipes":
            return torch.full(shape, -1e4)
        case "wipes sometimes":
            return torch.where(torch.rand(shape) < 0.2, -1e4, usual)
    raise ValueError(kind)


def make_case(time: int, variant: str, kind: str = "usual", dtype: torch.dtype = torch.float64) -> Case:
    """q, k, v, g, beta; the initial state; lengths and seq_idx. What is padding is NaN, and of another sequence."""
    q, k = torch.randn(2, BATCH, time, HEADS, KEY).unbind()
    v, beta = torch.randn(BATCH, time, HEADS, VALUE), torch.rand(BATCH, time, HEADS)
    rows = {}
    if "lengths" in variant:
        rows["lengths"] = ragged(time)
    if "seq_idx" in variant:
        rows["seq_idx"] = segments(BATCH, time)
        if "lengths" in variant:
            rows["seq_idx"] = poison(rows["seq_idx"].double(), rows["lengths"]).nan_to_num(99).long()
    inputs = [poison(x.to(dtype), rows.get("lengths")) for x in (q, k, v, gates(kind, *beta.shape), beta)]
    state = torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64) if "state" in variant else None
    return inputs, state, rows


def against_reference(case: Case, output: float, final: float, delta: bool = True) -> None:
    inputs, state, rows = case
    wide = [x.double() for x in inputs]
    expected_o, expected_s = ops.gated_delta_rule(*wide, state, delta=delta, **rows, backend="reference")
    given = state if state is None or inputs[0].dtype == torch.float64 else state.float()
    o, s = ops.gated_delta_rule(*inputs, given, delta=delta, **rows, backend="eager")
    assert o.dtype == inputs[2].dtype
    assert s.dtype == (torch.float64 if inputs[0].dtype == torch.float64 else torch.float32)
    assert o.isfinite().all()
    assert_close(unpad(o, rows.get("lengths")), unpad(expected_o, rows.get("lengths")), output)
    assert_close(s, expected_s, final)


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("time", TIMES)
def test_equals_reference(time: int, variant: str, delta: bool):
    against_reference(make_case(time, variant), 1e-10, 1e-10, delta)


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("dtype, output", [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("kind", ["usual", "keeps everything", "forgets", "wipes", "wipes sometimes"])
def test_gates_and_dtypes(kind: str, dtype: torch.dtype, output: float, delta: bool):
    """float32 within 1e-5 and bfloat16 within 2e-2 of float64 on the same inputs; the state always in float32."""
    against_reference(make_case(150, "state lengths", kind, dtype), output, min(output, 1e-5), delta)


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_without_the_correction_it_is_attention(backend: str):
    """No decay and beta = 1: o_t is the sum of v_j (k_j . q_t) over j <= t; with the correction it is not."""
    (q, k, v, g, beta), _, _ = make_case(100, "plain")
    plain = (q, k, v, torch.zeros_like(g), torch.ones_like(beta))
    unit = [x.transpose(1, 2) / (x.transpose(1, 2).square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k)]
    scores = (unit[0] @ unit[1].transpose(-1, -2) * KEY**-0.5).tril()
    o, state = ops.gated_delta_rule(*plain, delta=False, backend=backend)
    assert_close(o, (scores @ v.transpose(1, 2)).transpose(1, 2), 1e-10)
    assert_close(state, unit[1].transpose(-1, -2) @ v.transpose(1, 2), 1e-10)
    assert relative(ops.gated_delta_rule(*plain, backend=backend)[0], o) > 0.1


@pytest.mark.parametrize("time", [1, 64, 100, 257])
def test_equals_transformers(time: int):
    """A second opinion: Qwen3-Next's chunked rule, in float32."""
    other = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next").torch_chunk_gated_delta_rule
    inputs, state, _ = make_case(time, "state", dtype=torch.float32)
    o, final = other(*inputs, initial_state=state.float(), output_final_state=True, use_qk_l2norm_in_kernel=True)
    found = ops.gated_delta_rule(*inputs, state.float(), backend="eager")
    assert_close(found[0], o, 1e-5)
    assert_close(found[1], final, 1e-5)


def gradients(backend: str, case: Case, weights: list[Tensor], delta: bool) -> list[Tensor]:
    inputs, state, rows = case
    leaves = [x.clone().requires_grad_() for x in (*inputs, *([] if state is None else [state]))]
    o, s = ops.gated_delta_rule(*leaves, delta=delta, **rows, backend=backend)
    loss = (unpad(o, rows.get("lengths")) * unpad(weights[0], rows.get("lengths"))).sum() + (s * weights[1]).sum()
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("variant", ["plain", "state", "state lengths seq_idx"])
@pytest.mark.parametrize("time", [1, 63, 64, 65, 100])
def test_gradients_equal_reference(time: int, variant: str, delta: bool):
    case = make_case(time, variant)
    weights = [torch.randn_like(case[0][2]), torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)]
    found, expected = (gradients(backend, case, weights, delta) for backend in ("eager", "reference"))
    assert_same_gradients(found, expected, 1e-9)  # zero at NaN padding, too


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("time", [1, 5, 63, 64, 65, 100])
def test_gradcheck(time: int, delta: bool):
    q, k, v = torch.randn(3, 1, time, 2, 3, dtype=torch.float64).unbind()
    inputs = [
        q,
        k,
        v,
        -torch.rand(1, time, 2).double(),
        torch.rand(1, time, 2).double(),
        torch.randn(1, 2, 3, 3).double(),
    ]
    seq_idx = segments(1, time)
    function = lambda *x: ops.gated_delta_rule(*x, seq_idx=seq_idx, delta=delta, backend="eager")  # noqa: E731
    torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs], fast_mode=time > 5)
