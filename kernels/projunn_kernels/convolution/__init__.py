"""Norm-preserving convolutions held in the Fourier domain: one matrix for each frequency.

    y = F^-1 (W F x) + b

F is the discrete Fourier transform.  `fourier` has the whole convolution, made of the transforms of
`transform` and the batched products of `products`; `grid` says which frequencies have a free matrix.
"""

from projunn_kernels.convolution.fourier import (
    fourier_convolution,
    fourier_convolution_backward,
    fourier_convolution_sketch,
    spectrum_of,
    through_transform,
)
from projunn_kernels.convolution.grid import Frequencies, frequencies
from projunn_kernels.convolution.transform import fourier_inverse, fourier_transform, ways

__all__ = [
    "Frequencies",
    "fourier_convolution",
    "fourier_convolution_backward",
    "fourier_convolution_sketch",
    "fourier_inverse",
    "fourier_transform",
    "frequencies",
    "spectrum_of",
    "through_transform",
    "ways",
]
