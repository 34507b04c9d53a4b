"""Train neural networks with unitary and orthogonal weights by low-rank updates (projUNN).

`projunn.nn` has layers with unitary weights.  `constrain` makes the weights of other layers unitary, and
`convert` takes over those that another library keeps orthogonal.  The optimizers of `projunn.optim` keep
all of them unitary, and step other parameters as `torch.optim` does.  They are built on two functions:
`factorize`, low-rank factors of a gradient, and `retract`, the step along them.  `unitarity_defect`
measures how far a weight is from unitary, and `project_` replaces it by the nearest unitary one.
`backend` chooses between PyTorch operations and Triton kernels.

Source: Kiani, Balestriero, LeCun, Lloyd, NeurIPS 2022, arXiv 2203.05483.
"""

from projunn import interruption  # noqa: F401  # first: the other imports take seconds

# isort: split
from projunn import (
    diagnostics,
    distributed,
    factored_rules,  # noqa: F401  # enters what operations on a FactoredTensor compute
    init,
    models,
    nn,
    optim,
)
from projunn.conversion import convert
from projunn.diagnostics import unitarity_defect
from projunn.factored import FactoredTensor
from projunn.lipschitz import certified_accuracy, lipschitz_bound
from projunn.lowrank import factorize
from projunn.manifold import (
    UnitaryParameter,
    constrain,
    matrix_view,
    project_,
    unconstrain,
    unitary_parameters,
    view_like,
)
from projunn.noticing import OffManifoldWarning
from projunn.plain import to_plain
from projunn.retraction import retract, retract_
from projunn_kernels.backends import backend

__version__ = "0.2.0"

__all__ = [
    "FactoredTensor",
    "OffManifoldWarning",
    "UnitaryParameter",
    "backend",
    "certified_accuracy",
    "constrain",
    "convert",
    "diagnostics",
    "distributed",
    "factorize",
    "init",
    "lipschitz_bound",
    "matrix_view",
    "models",
    "nn",
    "optim",
    "project_",
    "retract",
    "retract_",
    "to_plain",
    "unconstrain",
    "unitarity_defect",
    "unitary_parameters",
    "view_like",
]
