"""Tokens that attend to each other in groups, as vision's patches do in windows and in pictures."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Groups:
    """Groups of neighbouring tokens, padded to one size L.

    gather: [count, L] token of every place; scatter: [tokens] place of every token; mask: [count, 1, 1, L] True at
    real tokens. All None when the groups have the same size and a view serves.
    """

    count: int
    gather: Tensor | None = None
    scatter: Tensor | None = None
    mask: Tensor | None = None

    def split(self, x: Tensor) -> Tensor:
        """[tokens, ...] -> [count, L, ...]"""
        return x.unflatten(0, (self.count, -1)) if self.gather is None else x[self.gather]

    def join(self, x: Tensor) -> Tensor:
        """[count, L, ...] -> [tokens, ...]"""
        return x.flatten(0, 1) if self.scatter is None else x.flatten(0, 1)[self.scatter]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention of queries, keys and values [tokens, H, D] of every group to itself, by PyTorch."""
        q, k, v = (self.split(x).transpose(1, 2) for x in (q, k, v))
        return self.join(F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2))
