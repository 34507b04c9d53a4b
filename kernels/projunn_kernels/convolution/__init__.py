"""Norm-preserving convolutions held in the Fourier domain: one matrix for each frequency.

    y = F^-1 (W F x) + b

`fourier` has the whole convolution, made of cuFFT's or pocketfft's transforms and of the products of
`spectral`; `grid` says which frequencies are free.
"""

from projunn_kernels.convolution.fourier import (
    fourier_convolution,
    fourier_convolution_backward,
    fourier_convolution_sketch,
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
]
