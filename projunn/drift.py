"""Drift: rounding moves a weight off the manifold as a random walk; a polish brings it back.

One Newton-Schulz step towards the polar factor, ``W <- W + W (I - W^H W)/2``, turns a small defect
E = W^H W - I into one of norm at most 3/4 |E|^2 + 1/4 |E|^3, that is, into rounding.  It costs
4 n^3 operations, so the optimizers take one every `polish_period` steps.
"""

import torch
from torch import Tensor

_PERIOD = 192  # steps; a float32 defect grows to about 8e-7 meanwhile (docs/measured.md)


def polish_period(weight: Tensor) -> int:
    """Steps between two polishes, such that they cost a few percent of the steps at any size."""
    return max(_PERIOD, 2 * max(weight.shape[-2:]))


def polish_(weight: Tensor) -> Tensor:
    """One Newton-Schulz step on each matrix (*batch, m, n), in place; returns ``weight``.

    A matrix further than 0.5 from unitary (in Frobenius norm of W^H W - I), where the iteration
    could diverge, or not finite, is left as it is.  No host synchronisation.
    """
    with torch.no_grad():
        wide = weight.shape[-2] < weight.shape[-1]
        gram = weight @ weight.mH if wide else weight.mH @ weight
        error = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) - gram
        near = torch.linalg.matrix_norm(error, keepdim=True) < 0.5
        correction = error @ weight if wide else weight @ error
        return weight.add_(torch.where(near, correction, 0.0), alpha=0.5)
