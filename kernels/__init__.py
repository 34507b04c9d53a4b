"""Operations on batches of square or rectangular matrices, imported as ``projunn.kernels``.

One operation a file, each with its formula, a plain reference and the path that runs.  A
projUNN step passes through them in this order::

    products     Z = W^H X                      one read of W
    basis        Z Y^H = Q E Q^H                n x 2k, Q with orthonormal columns
    rotation     F = f(E) - I                   2k x 2k, unitary minus identity
    products     L = W Q                        one read of W
    rank_update  W += L (Q F^H)^H               one read and write of W

``recurrence`` is the time loop of the unitary RNN; ``convolution`` the Fourier-domain convolution,
made of ``spectral`` products over the bins that ``frequencies`` tells apart.  Nothing here imports
``projunn``.
"""

from projunn.kernels.basis import step_basis
from projunn.kernels.convolution import fourier_convolution
from projunn.kernels.frequencies import Frequencies, frequencies
from projunn.kernels.products import adjoint_product, product
from projunn.kernels.rank_update import rank_update_
from projunn.kernels.recurrence import NONLINEARITIES, apply_nonlinearity, recurrence
from projunn.kernels.rotation import RETRACTIONS, rotation
from projunn.kernels.spectral import spectral_gradient, spectral_product

__all__ = [
    "NONLINEARITIES",
    "RETRACTIONS",
    "Frequencies",
    "adjoint_product",
    "apply_nonlinearity",
    "fourier_convolution",
    "frequencies",
    "product",
    "rank_update_",
    "recurrence",
    "rotation",
    "spectral_gradient",
    "spectral_product",
    "step_basis",
]
