"""Drift: rounding moves a weight off the manifold as a random walk; a polish brings it back.

`projunn_kernels.polish_` is one Newton-Schulz step; the optimizers take one every `polish_period` steps.
"""

from torch import Tensor

_PERIOD = 192  # steps; a float32 defect grows to about 8e-7 meanwhile (docs/measured.md)


def polish_period(weight: Tensor) -> int:
    """Steps between two polishes, such that they cost a few percent of the steps at any size."""
    return max(_PERIOD, 2 * max(weight.shape[-2:]))
