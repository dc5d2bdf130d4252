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
from infinitevl.model.layers import MLP, RMSNorm
from infinitevl.model.linear import Linear, project_and_norm
from infinitevl.model.positions import Grid

EPS, THETA = 1e-6, 10000.0


@dataclass(frozen=True)
class Partition:
    """Groups of neighbouring patches that attend to each other, padded to one size L.

    gather: [groups, L] patch of every place; scatter: [patches] place of every patch; mask: [groups, 1, 1, L] True
    at real patches. All None when the groups have the same size and a view serves.
    """

    groups: int
    gather: Tensor | None
    scatter: Tensor | None
    mask: Tensor | None

    def split(self, x: Tensor) -> Tensor:
        """[patches, ...] -> [groups, L, ...]"""
        return x.unflatten(0, (self.groups, -1)) if self.gather is None else x[self.gather]

    def join(self, x: Tensor) -> Tensor:
        """[groups, L, ...] -> [patches, ...]"""
        return x.flatten(0, 1) if self.scatter is None else x.flatten(0, 1)[self.scatter]


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
    windows: Partition
    frames: Partition


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
            windows=_partition(torch.cat(sizes) * cells, device),
            frames=_partition(torch.cat([torch.full((t,), h * w) for t, h, w in grid]), device),
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


def _partition(sizes: Tensor, device: torch.device) -> Partition:
    longest = int(sizes.max())
    if bool((sizes == longest).all()):
        return Partition(len(sizes), None, None, None)
    start, place = sizes.cumsum(0) - sizes, torch.arange(longest)
    real = place < sizes[:, None]
    gather = torch.where(real, start[:, None] + place, 0)
    scatter = real.flatten().nonzero()[:, 0]
    return Partition(len(sizes), gather.to(device), scatter.to(device), real[:, None, None].to(device))


class VisionAttention(nn.Module):
    def __init__(self, config: InfiniteVLVisionConfig):
        super().__init__()
        self.heads = config.num_heads
        self.qkv = Linear(config.hidden_size, config.hidden_size * 3)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, partition: Partition, residual: Tensor, norm: RMSNorm
    ) -> tuple[Tensor, Any]:
        """x, residual: [patches, hidden]; every patch attends to those of its group. Returns the sum, and its norm."""
        q, k, v = ops.rotate_heads(self.qkv(x).unflatten(-1, (3, self.heads, -1)), cos, sin)
        q, k, v = (partition.split(y).transpose(1, 2) for y in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=partition.mask)
        return project_and_norm(residual, partition.join(o.transpose(1, 2)).flatten(1), self.proj, norm)


class VisionBlock(GradientCheckpointingLayer):
    before_products: ClassVar = ("norm1", "norm2")

    def __init__(self, config: InfiniteVLVisionConfig):
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, EPS)
        self.norm2 = RMSNorm(config.hidden_size, EPS)
        self.attn = VisionAttention(config)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, partition: Partition) -> Tensor:
        x, y = self.attn(self.norm1(x), cos, sin, partition, x, self.norm2)
        return self.mlp(y, x)


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

    def forward(self, x: Tensor) -> Tensor:
        """[patches, hidden] -> [patches / 4, out]"""
        return self.mlp(self.ln_q(x).reshape(-1, self.wide))


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
        x = self.patch_embed(patches)[plan.order]
        for i, block in enumerate(self.blocks):
            full = i in self.config.fullatt_block_indexes
            x = block(x, plan.cos, plan.sin, plan.frames if full else plan.windows)
        return self.merger(x)[plan.restore]
