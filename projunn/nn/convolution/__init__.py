"""Norm-preserving convolutions, held in the Fourier domain."""

from projunn.nn.convolution.kinds import (
    UnitaryConv1d,
    UnitaryConv2d,
    UnitaryConv3d,
    UnitaryConvTranspose1d,
    UnitaryConvTranspose2d,
    UnitaryConvTranspose3d,
)
from projunn.nn.convolution.layers import UnitaryConvolution
from projunn.nn.convolution.local import LocalUnitaryConv1d, LocalUnitaryConv2d, LocalUnitaryConv3d

__all__ = [
    "LocalUnitaryConv1d",
    "LocalUnitaryConv2d",
    "LocalUnitaryConv3d",
    "UnitaryConv1d",
    "UnitaryConv2d",
    "UnitaryConv3d",
    "UnitaryConvTranspose1d",
    "UnitaryConvTranspose2d",
    "UnitaryConvTranspose3d",
    "UnitaryConvolution",
]
