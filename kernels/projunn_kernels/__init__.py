"""Operations on batches of matrices, real and complex, that the layers and optimizers of projunn use.

Each operation is a folder: its declaration, the PyTorch operations that CPUs run (``eager``), the Triton
kernels that GPUs run (``kernels``, ``launch``, ``tiles``) and, for tests, the plain formula
(``reference``).  ``kernels/README.md`` follows a step through the folders, says what is in which file,
and has a glossary.

`operation` says how an operation is called, `backends` which of its paths runs, `configs` with which
tile sizes, and `tuning` finds better ones.  Nothing here imports ``projunn``, and triton is imported
only where a kernel is launched.
"""

from projunn_kernels.convolution import (
    Frequencies,
    fourier_convolution,
    fourier_convolution_sketch,
    fourier_inverse,
    fourier_transform,
    frequencies,
)
from projunn_kernels.factorization import factor, orthonormalize, tangent_factors
from projunn_kernels.polish import polish_, polish_near_, polish_when_due_
from projunn_kernels.products.eager import adjoint_product, product
from projunn_kernels.random import seeded_normal
from projunn_kernels.rank_update import rank_update_
from projunn_kernels.retraction import RETRACTIONS, retract_, retract_pulled_, rotation, step_basis
from projunn_kernels.rules import RULES, RuleNumbers, RuleStep, follow_rule_
from projunn_kernels.sketching import sketch
from projunn_kernels.step import (
    FactoredStep,
    FollowedStep,
    FusedStep,
    factored_step_,
    followed_step_,
    fused_step_,
)
from projunn_kernels.time_loop import (
    NONLINEARITIES,
    RecurrenceBackward,
    apply_nonlinearity,
    recurrence,
    recurrence_backward,
)
from projunn_kernels.undifferentiated import constant
from projunn_kernels.warm_basis import refresh_basis_

__all__ = [
    "NONLINEARITIES",
    "RETRACTIONS",
    "RULES",
    "FactoredStep",
    "FollowedStep",
    "Frequencies",
    "FusedStep",
    "RecurrenceBackward",
    "RuleNumbers",
    "RuleStep",
    "adjoint_product",
    "apply_nonlinearity",
    "constant",
    "factor",
    "factored_step_",
    "follow_rule_",
    "followed_step_",
    "fourier_convolution",
    "fourier_convolution_sketch",
    "fourier_inverse",
    "fourier_transform",
    "frequencies",
    "fused_step_",
    "orthonormalize",
    "polish_",
    "polish_near_",
    "polish_when_due_",
    "product",
    "rank_update_",
    "recurrence",
    "recurrence_backward",
    "refresh_basis_",
    "retract_",
    "retract_pulled_",
    "rotation",
    "seeded_normal",
    "sketch",
    "step_basis",
    "tangent_factors",
]
