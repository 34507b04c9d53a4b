"""The low-rank update, as the formula says."""

from torch import Tensor


def rank_update(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``W + L R^H``, a new tensor: W (*batch, m, n), L (*batch, m, r), R (*batch, n, r)."""
    return weight + left @ right.mH
