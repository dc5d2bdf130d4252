"""Qwen2.5-VL's vision encoder. What depends on the grid is planned once per size; the forward pass is tensors only."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from infinitevl import ops
from infinitevl.model.configuration import InfiniteVLVisionConfig
from infinitevl.model.layers import MLP, Normed, RMSNorm, following
from infinitevl.model.linear import Linear, project_and_norm
from infinitevl.model.positions import Grid
from infinitevl.ops.groups import Groups

EPS, THETA = 1e-6, 10000.0


@dataclass(frozen=True)
class Plan:
    """Everything about a grid that the forward pass needs, on its device.

    order: [patches] patches by window; restore: [patches / 4] merged patches back to raster order;
    cos, sin: [patches, 1, head_dim / 2] of `dtype`, by window; windows, frames: who attends to whom.
    """

    order: Tensor
    restore: Tensor
    cos: Tensor
    sin: Tensor
    windows: Groups
    frames: Groups


@lru_cache(maxsize=8)
def plan(grid: Grid, window: int, merge: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> Plan:
    """grid, merge: in patches; window: merged patches a side of an attention window; dtype: of cos and sin."""
    cells = merge * merge
    with torch.inference_mode(False):
        orders, restores, angles, sizes, start = [], [], [], [], 0
        for t, h, w in grid:
            order, counts = _window_order(h // merge, w // merge, window)
            first = torch.arange(start, start + t * len(order), len(order), device=device)[:, None]
            orders.append((first + order.to(device)).flatten())
            restores.append((first + torch.argsort(order).to(device)).flatten())
            by_window = _angles(h, w, merge, head_dim).unflatten(0, (-1, cells))[order].flatten(0, 1)
            angles.append(by_window.to(device).repeat(t, 1))
            sizes.append(counts.repeat(t))
            start += t * len(order)
        units, angle = torch.cat(orders), torch.cat(angles)[:, None]
        return Plan(
            order=(units[:, None] * cells + torch.arange(cells, device=device)).flatten(),
            restore=torch.cat(restores),
            cos=angle.cos().to(dtype),
            sin=angle.sin().to(dtype),
            windows=_groups(torch.cat(sizes) * cells, device),
            frames=_groups(torch.cat([torch.full((t,), h * w) for t, h, w in grid]), device),
        )


def _window_order(height: int, width: int, window: int) -> tuple[Tensor, Tensor]:
    """Merged patches of a frame sorted by window, and the number of them in each window."""
    rows, columns = torch.arange(height)[:, None] // window, torch.arange(width)[None] // window
    owner = (rows * -(-width // window) + columns).flatten()
    return torch.argsort(owner, stable=True), torch.bincount(owner)


def _angles(height: int, width: int, merge: int, head_dim: int) -> Tensor:
    """[patches, head_dim / 2] float64 rotary angles of a frame in merge-block order: half by row, half by column."""
    step = torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)
    frequency = (1.0 / THETA**step).double()
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    angles = []
    for index in (rows.expand(height, width), columns.expand(height, width)):
        blocks = index.unflatten(0, (-1, merge)).unflatten(2, (-1, merge)).transpose(1, 2)
        angles.append(blocks.flatten()[:, None] * frequency)
    return torch.cat(angles, dim=-1)


def _groups(sizes: Tensor, device: torch.device) -> Groups:
    longest = int(sizes.max())
    if bool((sizes == longest).all()):
        return Groups(len(sizes), None, None, None)
    start, place = sizes.cumsum(0) - sizes, torch.arange(longest)
    real = place < sizes[:, None]
    gather = torch.where(real, start[:, None] + place, 0)
    scatter = real.flatten().nonzero()[:, 0]
    return Groups(len(sizes), gather.to(device), scatter.to(device), real[:, None, None].to(device))


class VisionAttention(nn.Module):
    def __init__(self, config: InfiniteVLVisionConfig):
        super().__init__()
        self.heads = config.num_heads
        self.qkv = Linear(config.hidden_size, config.hidden_size * 3)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, groups: Groups, residual: Tensor, norm: RMSNorm
    ) -> tuple[Tensor, Any]:
        """x, residual: [patches, hidden]; every patch attends to those of its group. Returns the sum, and its norm."""
        o = ops.group_attention(self.qkv(x).unflatten(-1, (3, self.heads, -1)), cos, sin, groups)
        return project_and_norm(residual, o.flatten(1), self.proj, norm)


class VisionBlock(GradientCheckpointingLayer):
    before_products: ClassVar = ("norm1", "norm2")

    def __init__(self, config: InfiniteVLVisionConfig):
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, EPS)
        self.norm2 = RMSNorm(config.hidden_size, EPS)
        self.attn = VisionAttention(config)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, bias=True)

    def forward(
        self, x: Tensor | Normed, cos: Tensor, sin: Tensor, groups: Groups, norm: RMSNorm | None = None
    ) -> Any:
        """norm: the one after this block; where it is given, `Normed` by it is returned."""
        x, y = Normed.of(x, self.norm1)
        x, y = self.attn(y, cos, sin, groups, x, self.norm2)
        return self.mlp(y, x, norm)


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel: a linear map of each patch."""

    def __init__(self, config: InfiniteVLVisionConfig):
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel, kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """[patches, channels * temporal * height * width] -> [patches, hidden]"""
        weight = self.proj.weight
        return F.linear(patches.to(weight.dtype), weight.flatten(1))


class PatchMerger(nn.Module):
    """2 x 2 neighbouring patches to one token of the language model."""

    def __init__(self, config: InfiniteVLVisionConfig):
        super().__init__()
        wide = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, EPS)
        self.mlp = nn.Sequential(Linear(wide, wide), nn.GELU(), Linear(wide, config.out_hidden_size))
        self.wide = wide

    def forward(self, x: Tensor | Normed) -> Tensor:
        """[patches, hidden] -> [patches / 4, out]"""
        return self.mlp(Normed.of(x, self.ln_q).y.reshape(-1, self.wide))


class VisionTower(nn.Module):
    def __init__(self, config: InfiniteVLVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList([VisionBlock(config) for _ in range(config.depth)])
        self.merger = PatchMerger(config)

    def plan(self, grid: Grid, device: torch.device) -> Plan:
        """The plan for images and videos of these sizes. Raises ValueError for a grid that cannot be merged."""
        merge = self.config.spatial_merge_size
        if any(t < 1 or h < merge or w < merge or h % merge or w % merge for t, h, w in grid):
            raise ValueError(f"grid {grid}: height and width must be multiples of {merge} patches")
        window = self.config.window_size // merge // self.config.patch_size
        exact = self.patch_embed.proj.weight.dtype == torch.float64
        dtype = torch.float64 if exact else torch.float32
        return plan(grid, window, merge, self.config.hidden_size // self.config.num_heads, device, dtype)

    def forward(self, patches: Tensor, plan: Plan) -> Tensor:
        """patches: [patches, channels * temporal * 14 * 14], images and videos one after the other.
        Returns [patches / 4, out_hidden_size] in the same order."""
        x: Any = self.patch_embed(patches)[plan.order]
        norms = [*(block.norm1 for block in self.blocks), self.merger.ln_q][1:]
        for i, (block, norm) in enumerate(zip(self.blocks, norms, strict=True)):
            full = i in self.config.fullatt_block_indexes
            x = block(x, plan.cos, plan.sin, plan.frames if full else plan.windows, following(norm))
        return self.merger(x)[plan.restore]
