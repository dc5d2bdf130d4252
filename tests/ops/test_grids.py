"""Launches of very many rows: a grid has 2^31 - 1 programs along its first axis, but 65,535 along the others."""

import pytest
import torch

from infinitevl.ops.groups import Groups
from infinitevl.ops.triton import finish, fp8, groups, heads, norm, pointwise, rotary
from infinitevl.ops.triton.finish import write_ring
from infinitevl.ops.triton.fp8 import round_rows
from infinitevl.ops.triton.groups import group_attention
from infinitevl.ops.triton.heads import rotate_heads
from infinitevl.ops.triton.norm import gated_rms_norm
from infinitevl.ops.triton.pointwise import add_norm, add_parts, rms_norm, silu_product
from infinitevl.ops.triton.rotary import rotary_table

ROWS, MOST = 70_000, 65_535
ONE = torch.zeros(1, dtype=torch.int64)


class Grids(list):
    """In the place of a kernel: notes its grids, runs nothing."""

    def __getitem__(self, grid):  # pyright: ignore[reportIncompatibleMethodOverride]
        self.append(grid)
        return lambda *args, **options: None


def rows(*width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(ROWS, *width, dtype=dtype)


LAUNCHES = {
    "silu": (pointwise, "_silu_kernel", lambda: silu_product(rows(4))),
    "sum": (pointwise, "_add_kernel", lambda: add_parts(rows(2)[None], None, None, torch.float32)),
    "sum and norm": (
        pointwise, "_add_norm_kernel", lambda: add_norm(rows(2)[None], None, rows(2), torch.ones(2), 1e-5)
    ),
    "norm": (pointwise, "_norm_kernel", lambda: rms_norm(rows(2), torch.ones(2), 1e-5)),
    "gated norm": (norm, "_norm_kernel", lambda: gated_rms_norm(rows(2), rows(2), torch.ones(2), 1e-5)),
    "float8": (fp8, "_round_kernel", lambda: round_rows(rows(2))),
    "heads": (heads, "_rotate_kernel", lambda: rotate_heads(rows(3, 1, 2), rows(1), rows(1))),
    "groups": (
        groups, "_group_kernel", lambda: group_attention(rows(3, 1, 2), rows(1), rows(1), Groups(ROWS))
    ),
    "ring": (
        finish, "_finish_kernel",
        lambda: write_ring(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), rows(1, 2)[None], rows(1, 2)[None], ONE),
    ),
    "table": (
        rotary, "_table_kernel",
        lambda: rotary_table(rows(3, dtype=torch.int64).T[:, None], torch.ones(1), ONE, torch.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAUNCHES)
def test_rows_are_on_the_first_axis(name: str, monkeypatch: pytest.MonkeyPatch):
    module, kernel, launch = LAUNCHES[name]
    grids = Grids()
    monkeypatch.setattr(module, kernel, grids)
    launch()
    (grid,) = grids
    assert max(grid[1:], default=1) <= MOST, grid
    assert grid[0] * (64 if name in ("ring", "table", "heads", "gated norm") else 1) >= ROWS, "it was launched"
