"""Operations on batches of square or rectangular matrices, imported as ``projunn_kernels``.

One operation a file, each with its formula, a plain reference, the PyTorch path, and the operator
``torch.ops.projunn.*`` that GPUs and ``torch.compile`` go through.  A projUNN step passes through
them in this order::

    factor       Y = orth(D^H R), X = D Y       two reads of D
    products     Z = W^H X                      one read of W           \\
    basis        Z Y^H = Q E Q^H                n x 2k, Q orthonormal    |
    rotation     F = f(E) - I                   2k x 2k                  | retract
    products     L = W Q                        one read of W            |
    rank_update  W += L (Q F^H)^H               one read and write of W /

`fused_step` is all of it for parameters of one shape; ``sketch`` takes the factors of a gradient that
is never formed, and ``factored_step`` goes on from there.  ``recurrence`` is the time loop of the
unitary RNN (on a CPU, `time_loop`; its sums over time are `time_sums`), and ``convolution`` the
Fourier-domain convolution, made of ``spectral`` products over the bins that ``frequencies`` tells
apart.  ``jit`` holds the Triton kernels under these, ``tuning`` how they are configured (by ``tables``
or in ``closed_form``, for ``problems``), ``backends`` what runs when.  Nothing here imports ``projunn``,
and nothing but ``jit`` imports triton.
"""

from projunn_kernels.basis import step_basis
from projunn_kernels.convolution import fourier_convolution, fourier_convolution_sketch
from projunn_kernels.factor import factor, orthonormalize
from projunn_kernels.factored_step import factored_step_
from projunn_kernels.frequencies import Frequencies, frequencies
from projunn_kernels.fused_step import fused_step_
from projunn_kernels.polish import polish_, polish_when_due_
from projunn_kernels.products import adjoint_product, product
from projunn_kernels.random import seeded_normal
from projunn_kernels.rank_update import rank_update_
from projunn_kernels.recurrence import (
    NONLINEARITIES,
    apply_nonlinearity,
    recurrence,
    recurrence_backward,
)
from projunn_kernels.retract import retract_
from projunn_kernels.rotation import RETRACTIONS, rotation
from projunn_kernels.sketch import sketch
from projunn_kernels.spectral import spectral_gradient, spectral_product

__all__ = [
    "NONLINEARITIES",
    "RETRACTIONS",
    "Frequencies",
    "adjoint_product",
    "apply_nonlinearity",
    "factor",
    "factored_step_",
    "fourier_convolution",
    "fourier_convolution_sketch",
    "frequencies",
    "fused_step_",
    "orthonormalize",
    "polish_",
    "polish_when_due_",
    "product",
    "rank_update_",
    "recurrence",
    "recurrence_backward",
    "retract_",
    "rotation",
    "seeded_normal",
    "sketch",
    "spectral_gradient",
    "spectral_product",
    "step_basis",
]
