"""What the backward of layers with sketched gradients, and the step along them, ask of a GPU.

A fixed number of launches for any number of blocks, time steps or frequencies.
"""

import itertools

import pytest
import torch

pytest.importorskip("triton")

import projunn
from projunn.nn import BlockUnitaryLinear, UnitaryConv2d, UnitaryLinear, UnitaryRNN
from projunn.optim import SGD, AdamW, RMSprop
from projunn_kernels import factor, retract_
from tests.combinations import pairwise
from tests.dense import RETRACTIONS
from tests.launches import watched

KINDS = [torch.float32, torch.complex64]
REAL_AND_COMPLEX = pytest.mark.parametrize("kind", KINDS, ids=str)
RANKS = [1, 2, 4, 8, 16]
EVERY_RANK = pytest.mark.parametrize("k", RANKS)
RULES = {
    "SGD": lambda parameters, k: SGD(parameters, rank=k, momentum=0.9, nesterov=True, polish_every=0),
    "RMSprop": lambda parameters, k: RMSprop(parameters, rank=k, momentum=0.9, polish_every=0),
    "AdamW": lambda parameters, k: AdamW(parameters, rank=k, polish_every=0),
}


class Resetting(UnitaryRNN):
    """Every sequence begins anew at every third time step."""

    def forward(self, x):
        at = torch.arange(x.shape[0], device=x.device) % 3 == 2
        return super().forward(x, resets=at.unsqueeze(1).expand(x.shape[:2]))


# Each makes a layer and an input for it; of the sizes, nothing may depend on the first.
LAYERS = {
    "linear": lambda n, kind, k: (
        UnitaryLinear(16, 20, dtype=kind, sketch_rank=k),
        torch.randn(n, 16, dtype=kind),
    ),
    "large linear": lambda n, kind, k: (
        UnitaryLinear(20, 140, dtype=kind, sketch_rank=k),
        torch.randn(n, 20, dtype=kind),
    ),
    "blocks": lambda n, kind, k: (
        BlockUnitaryLinear(n, 16, dtype=kind, sketch_rank=k),
        torch.randn(3, 16 * n, dtype=kind),
    ),
    "recurrence": lambda n, kind, k: (
        UnitaryRNN(4, 16, dtype=kind, sketch_rank=k),
        torch.randn(n, 2, 4, dtype=kind),
    ),
    "recurrence with resets": lambda n, kind, k: (
        Resetting(4, 16, dtype=kind, sketch_rank=k),
        torch.randn(n, 2, 4, dtype=kind),
    ),
    "convolution": lambda n, kind, k: (
        UnitaryConv2d(16, 16, (4, n), dtype=kind, sketch_rank=k),
        torch.randn(2, 16, 4, n, dtype=kind),
    ),
}


def trained(kernels, layer, n, kind, k, rule):
    """What two steps of training ask for."""
    module, x = LAYERS[layer](n, kind, k)
    module, x = module.to(kernels.device), x.to(kernels.device)
    optimizer = RULES[rule](module.parameters(), k)
    with watched(kernels, run=False) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            output = module(x)
            output = output[0] if isinstance(output, tuple) else output
            output.abs().sum().backward()
            optimizer.step()
    return seen.kernels, list(seen.calls)


@pytest.mark.parametrize(
    ("layer", "k", "rule"), pairwise(itertools.product(LAYERS, KINDS), [1, 4, 16], RULES), ids=str
)
def test_a_step_of_training_takes_the_same_launches_for_any_number(kernels, layer, k, rule):
    # At rank 1 many blocks take two launches more than a few do: both numbers are beyond that.
    (layer, kind), sizes = layer, (10, 14)
    for n in sizes:  # the first time, tables of a size are made
        trained(kernels, layer, n, kind, k, rule)
    few, many = (trained(kernels, layer, n, kind, k, rule) for n in sizes)
    assert few[0] == many[0]
    assert few[1] == many[1]
    assert len(few[0]) > 5


@REAL_AND_COMPLEX
@EVERY_RANK
def test_a_sketched_layer_stays_within_its_budget(kernels, kind, k):
    """Its backward makes two products each way and a basis; its step retracts.

    From rank 9 on the products that have few columns on both sides are PyTorch's.
    """
    layer = BlockUnitaryLinear(3, 16, bias=False, dtype=kind, sketch_rank=k).to(kernels.device)
    optimizer = SGD(layer.parameters(), rank=k, polish_every=0)
    x = torch.randn(5, 48, dtype=kind, device=kernels.device)
    with watched(kernels, run=False) as seen:
        layer(x).abs().sum().backward()
        orthonormal = "unit" if k == 1 else "orthonormal"
        sketch = (
            ["gather", *["triangle", "combine"] * 2]
            if k > 8
            else ["product", "adjoint_product", orthonormal, "product", "adjoint_product"]
        )
        assert seen.kernels == sketch
        seen.clear()
        optimizer.step()
    if k > 8:
        retraction = ["adjoint_many", "gather", "follow", "turn", "gather", "triangle", "combine"]
        retraction += ["product_many", "update_many", "warm_basis"]
    else:
        last = ["plane_rows"] if k == 1 else ["basis", "rotate_rows"]
        retraction = ["adjoint_product", *last]
    assert seen.kernels == retraction


@REAL_AND_COMPLEX
@EVERY_RANK
@pytest.mark.parametrize("method", ["lsi", "column", "subspace"])
def test_factorizing_a_bank_is_as_many_launches_as_factorizing_one(kernels, kind, k, method):
    """As long as there are fewer matrices than multiprocessors, beyond which no column has parts."""
    asked = []
    for batch in (1, 2, 3):
        matrix = torch.randn(batch, 18, 140, dtype=kind, device=kernels.device)
        with watched(kernels, run=False) as seen:
            projunn.factorize(matrix, k, method)
        asked.append((seen.kernels, list(seen.calls)))
    assert asked[0][0] == asked[1][0] == asked[2][0]
    assert asked[1] == asked[2]  # of a single matrix, axes are viewed differently


@REAL_AND_COMPLEX
@EVERY_RANK
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("precise", [False, True])
def test_retracting_a_bank_is_as_many_launches_as_retracting_one(kernels, kind, k, retraction, precise):
    """In double precision, too, which no kernel takes."""
    if precise:
        kind = torch.complex128 if kind.is_complex else torch.float64
    asked = []
    # with as many matrices as multiprocessors, F of a large rank takes one launch
    for batch in [(2,), (3,), (1, 3)]:
        weight, left, right = (
            torch.randn(*batch, *size, dtype=kind, device=kernels.device)
            for size in ((18, 20), (18, k), (20, k))
        )
        with watched(kernels, run=False) as seen:
            projunn.retract_(weight, left, right, retraction)
        asked.append((seen.kernels, len(seen.calls)))
    assert asked[0] == asked[1]
    assert asked[2][0] == asked[0][0]
    assert (asked[0][0] == []) == precise


@pytest.mark.parametrize("call", ["qr", "svd", "eigh", "inv", "solve", "lu", "matrix_exp", "lstsq"])
def test_a_call_that_loops_over_matrices_would_be_seen(kernels, call):
    x = torch.eye(3, device=kernels.device).expand(2, 3, 3)
    function = getattr(torch.linalg, call)
    with pytest.raises(AssertionError, match="once a matrix"), watched(kernels):
        function(x, x) if call in ("solve", "lstsq") else function(x)


def test_so_would_many_large_triangles_and_calls_inside_of_operators(kernels):
    r = torch.eye(64, device=kernels.device).expand(3, 64, 64)
    with pytest.raises(AssertionError, match="triangular of size 64"), watched(kernels):
        torch.linalg.solve_triangular(r, r, upper=True)
    x = torch.randn(2, 8, 8, device=kernels.device)
    with watched(kernels, run=False) as seen:
        torch.ops.projunn.factor(x, x[..., :2])
        factor(x, x[..., :2])
        retract_(x, x[..., :2], x[..., :2], "exp")
    assert seen.kernels[:3] == seen.kernels[3:6] == ["adjoint_product", "orthonormal", "product"]
