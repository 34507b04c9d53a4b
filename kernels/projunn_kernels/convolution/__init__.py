"""Norm-preserving convolutions held in the Fourier domain: one matrix for each frequency.

    y = F^-1 (W F x) + b

F is the discrete Fourier transform.  `fourier` has the whole convolution, made of PyTorch's transforms
and of the products of `spectral`; `grid` says which frequencies have a free matrix.
"""

from projunn_kernels.convolution.fourier import (
    fourier_convolution,
    fourier_convolution_backward,
    fourier_convolution_sketch,
    transform_adjoint,
)
from projunn_kernels.convolution.grid import Frequencies, frequencies
from projunn_kernels.convolution.spectral import spectral_gradient, spectral_product

__all__ = [
    "Frequencies",
    "fourier_convolution",
    "fourier_convolution_backward",
    "fourier_convolution_sketch",
    "frequencies",
    "spectral_gradient",
    "spectral_product",
    "transform_adjoint",
]
