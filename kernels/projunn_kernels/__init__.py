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

from projunn_kernels.convolution import (
    Frequencies,
    fourier_convolution,
    fourier_convolution_sketch,
    frequencies,
    spectral_gradient,
    spectral_product,
)
from projunn_kernels.factorization import factor, orthonormalize
from projunn_kernels.polish import polish_, polish_when_due_
from projunn_kernels.products.eager import adjoint_product, product
from projunn_kernels.random import seeded_normal
from projunn_kernels.rank_update import rank_update_
from projunn_kernels.retraction import RETRACTIONS, retract_, rotation, step_basis
from projunn_kernels.sketching import sketch
from projunn_kernels.step import FactoredStep, FusedStep, factored_step_, fused_step_
from projunn_kernels.time_loop import (
    NONLINEARITIES,
    RecurrenceBackward,
    apply_nonlinearity,
    recurrence,
    recurrence_backward,
)
from projunn_kernels.warm_basis import refresh_basis_

__all__ = [
    "NONLINEARITIES",
    "RETRACTIONS",
    "FactoredStep",
    "Frequencies",
    "FusedStep",
    "RecurrenceBackward",
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
    "refresh_basis_",
    "retract_",
    "rotation",
    "seeded_normal",
    "sketch",
    "spectral_gradient",
    "spectral_product",
    "step_basis",
]
