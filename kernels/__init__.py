"""Operations on batches of square or rectangular matrices, imported as ``projunn.kernels``.

One operation a file, each with its formula, a plain reference and the path that runs.  A
projUNN step passes through them in this order::

    products     Z = W^H X                      one read of W
    basis        Z Y^H = Q E Q^H                n x 2k, Q with orthonormal columns
    rotation     F = f(E) - I                   2k x 2k, unitary minus identity
    products     L = W Q                        one read of W
    rank_update  W += L (Q F^H)^H               one read and write of W

and ``recurrence`` is the time loop of the unitary RNN.  Nothing here imports ``projunn``.
"""

from projunn.kernels.basis import step_basis
from projunn.kernels.products import adjoint_product, product
from projunn.kernels.rank_update import rank_update_
from projunn.kernels.recurrence import NONLINEARITIES, apply_nonlinearity, recurrence
from projunn.kernels.rotation import RETRACTIONS, rotation

__all__ = [
    "NONLINEARITIES",
    "RETRACTIONS",
    "adjoint_product",
    "apply_nonlinearity",
    "product",
    "rank_update_",
    "recurrence",
    "rotation",
    "step_basis",
]
