"""Train neural networks with unitary and orthogonal weights by low-rank updates (projUNN)."""

from projunn import diagnostics, init, models, nn, optim
from projunn.diagnostics import unitarity_defect
from projunn.factored import FactoredTensor
from projunn.lipschitz import certified_accuracy, lipschitz_bound
from projunn.lowrank import factorize
from projunn.manifold import (
    UnitaryParameter,
    constrain,
    matrix_view,
    unitary_parameters,
    view_like,
)
from projunn.retraction import retract, retract_
from projunn_kernels.backends import backend

__version__ = "0.1.0"

__all__ = [
    "FactoredTensor",
    "UnitaryParameter",
    "backend",
    "certified_accuracy",
    "constrain",
    "diagnostics",
    "factorize",
    "init",
    "lipschitz_bound",
    "matrix_view",
    "models",
    "nn",
    "optim",
    "retract",
    "retract_",
    "unitarity_defect",
    "unitary_parameters",
    "view_like",
]
