"""What a step through the public optimizers asks of a GPU: a fixed number of launches for a bank of any
size.

The budgets are those of docs/kernels.md, for each step after the first, which also makes the state.
"""

import copy
import itertools
from math import prod

import pytest
import torch

pytest.importorskip("triton")

import projunn
from projunn import init, optim
from projunn.nn import UnitaryLinear
from projunn_kernels.configs.problem import Device, Problem
from projunn_kernels.constants import MAX_FUSED
from projunn_kernels.step.row_tiles import fits_rows
from tests.combinations import pairwise
from tests.dense import RETRACTIONS, defect
from tests.launches import watched

RULES = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "AdamW": {"amsgrad": True},
    "Lion": {},
}
EVERY_RULE = pytest.mark.parametrize("rule", RULES)
REAL_AND_COMPLEX = pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
# Calls of PyTorch that launch nothing on a GPU: views, memory, and the counter, which the host has.
UNMOVED = {"empty", "new_empty", "unbind", "view", "view_as_real", "view_as_complex", "reshape"}
UNMOVED |= {"_foreach_add_", "_local_scalar_dense"}
FOLLOWED = ["sound", "rule"]  # the averages and the direction of a rule
SIZES = [(16, 16), (16, 70), (16, 130), (130, 16)]
RANKS_AND_SIZES = [*itertools.product([1, 2, 4, 8, 16], SIZES), (1, (130, 130))]


def optimizer_of(rule, parameters, **options):
    options = {"lr": 0.1, "polish_every": 0, **RULES[rule], **options}
    return getattr(optim, rule)(parameters, **options)


def unitary(kernels, *shape, kind=torch.float32):
    return projunn.UnitaryParameter(init.haar_(torch.empty(*shape, dtype=kind)).to(kernels.device))


def feed(*parameters):
    for p in parameters:
        p.grad = torch.randn_like(p)


def budget(k, m, n, count, kind=torch.float32):
    """Kernels of a step of one bank whose rule has averages."""
    plain = _plain_budget(k, m, n, count, kind)
    if plain[0] == "adjoint_product":
        return ["sound", "rule_product", *plain[1:]]
    return [*FOLLOWED, *plain]


def _plain_budget(k, m, n, count, kind):
    if k == 1 and m <= n <= MAX_FUSED:
        return ["plane_step"]
    short = fits_rows(Problem("plane_rows", kind.is_complex, k, m, n, count), Device())
    if short and m <= n:
        return ["adjoint_product", "unit_product", "adjoint_product", "plane_rows"]
    if k > 8:
        columns = ["gather", "triangle", "combine"]  # they need not be orthonormal: one Cholesky factor
        factors = ["adjoint_many", *columns, "product_many"]
        pulled, *last = ("adjoint_many", "product_many", "update_many")
        if m > n:
            pulled, *last = ("product_many", "adjoint_many", "update_many")
        whole = 2 * k >= max(m, n)  # the identity is a basis
        basis, turned = ([], []) if whole else (["triangle", "combine"], ["combine"])
        basis = ["gather", *basis, *_polar(k, max(m, n), count, kind), "turn", *turned]
        return [*factors, pulled, *basis, *columns, *last, "warm_basis"]
    factors = ["adjoint_product", *_orthonormal(k, n, count), "product"]
    if short:
        factors = ["adjoint_product", "unit_product"]
    if m > n:  # the columns of Q are padded to a power of two
        pushed = "adjoint_product" if 2 * k <= 8 else "adjoint_many"
        return [*factors, "product", *_basis(k, m, count), pushed, "rank_update", "warm_basis"]
    return [*factors, "adjoint_product", *_basis(k, n, count), "rotate_rows"]


def _orthonormal(k, length, count):
    """Kernels that orthonormalize k columns; parts of long ones of few matrices have a program each."""
    return ["unit"] if k == 1 else [*_gram(length, count), "orthonormal"]


def _polar(k, length, count, kind):
    """The products of a polar factor, where each has a launch: of more than one block."""
    if min(2 * k, length) * (1 + kind.is_complex) <= 32 or count >= Device().processors:
        return ["follow"]
    defect = ["small_product", "defect"]
    return ["begin", *defect, *["small_product"] * 8, *defect]


def _basis(k, length, count):
    return ["plane_basis"] if k == 1 else [*_gram(length, count), "basis"]


def _gram(length, count):
    return ["gram"] if length > 64 and count < Device().processors else []


@pytest.mark.parametrize(
    ("rule", "shape", "kind"),
    pairwise(RULES, RANKS_AND_SIZES, [torch.float32, torch.complex64]),
    ids=str,
)
def test_a_bank_of_any_size_takes_the_same_launches(kernels, rule, shape, kind):
    asked, (k, size) = [], shape
    for batch in [(), (2,), (3,), (2, 3)]:
        weight = unitary(kernels, *batch, *size, kind=kind)
        optimizer = optimizer_of(rule, [weight], rank=k, retraction="polar")
        with watched(kernels, run=False) as seen:
            feed(weight)
            optimizer.step()
            seen.clear()
            optimizer.step()
        assert seen.kernels == budget(k, *size, prod(batch), kind), batch
        asked.append(list(seen.calls))
    assert asked[1] == asked[2]
    # the gradient of several batch axes is viewed differently, not treated differently
    assert len(asked[3]) <= len(asked[2]) + 10


@REAL_AND_COMPLEX
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("factorization", ["subspace", "lsi", "column", "single_pass", "tangent"])
@pytest.mark.parametrize("k", [2, 33])
def test_every_retraction_and_factorization(kernels, kind, retraction, factorization, k):
    asked = []
    for batch in (2, 3):  # with as many matrices as multiprocessors, F of large ranks takes one launch
        weight = unitary(kernels, batch, 40, 40, kind=kind)
        options = {"retraction": retraction, "factorization": factorization}
        optimizer = optimizer_of("SGD", [weight], rank=k, **options)
        with watched(kernels, run=False) as seen:
            for _ in range(2):
                feed(weight)
                optimizer.step()
        asked.append((seen.kernels, list(seen.calls)))
    assert asked[0] == asked[1]


@REAL_AND_COMPLEX
@pytest.mark.parametrize("k", [1, 2, 8])
@pytest.mark.parametrize("size", [(16, 16), (16, 130), (130, 16)], ids=str)
def test_a_tangent_step_is_a_launch_for_each_pass(kernels, kind, k, size):
    for batch in [(), (5,)]:
        weight = unitary(kernels, *batch, *size, kind=kind)
        optimizer = optimizer_of("SGD", [weight], rank=k, factorization="tangent")
        with watched(kernels, run=False) as seen:
            feed(weight)
            optimizer.step()
            seen.clear()
            optimizer.step()
        into, back = ["product"] * 2, ["adjoint_product"] * 2
        tall = size[0] > size[1]
        applied = back + into if tall else into + back
        longer, count = max(size), prod(batch)
        columns = _orthonormal(k, longer, count) if k > 1 else []
        start, warm = [*applied, *columns], columns or ["warm_basis"]
        basis = _basis(k, longer, count)
        pushed = "adjoint_product" if 2 * k <= 8 else "adjoint_many"
        last = [pushed, "rank_update"] if tall else ["rotate_rows"]
        assert seen.kernels == [*FOLLOWED, *start, *applied, *basis, *last, *warm]


@EVERY_RULE
@REAL_AND_COMPLEX
def test_parameters_of_one_shape_are_one_launch(kernels, rule, kind):
    for count in (2, 5):
        layers = [
            UnitaryLinear(8, 8, bias=False, dtype=kind, device=kernels.device) for _ in range(count)
        ]
        weights = [layer.weight for layer in layers]
        optimizer = optimizer_of(rule, weights, rank=1)
        with watched(kernels, run=False) as seen:
            feed(*weights)
            optimizer.step()
            seen.clear()
            optimizer.step()
        names = [name for name, _ in seen.launches]
        assert names == [*FOLLOWED, "plane_step"]
        assert seen.launches[-1] == ("plane_step", count)
        assert set(seen.calls) <= UNMOVED, seen.calls


@EVERY_RULE
@REAL_AND_COMPLEX
@pytest.mark.parametrize(("k", "n"), [(1, 130), (2, 130), (2, 8)])
def test_other_parameters_of_one_shape_share_the_launches(kernels, rule, kind, k, n):
    for count in (1, 4):
        weights = [unitary(kernels, n, n, kind=kind) for _ in range(count)]
        optimizer = optimizer_of(rule, weights, rank=k)
        with watched(kernels, run=False) as seen:
            feed(*weights)
            optimizer.step()
            seen.clear()
            optimizer.step()
        assert seen.kernels == budget(k, n, n, count, kind)


@pytest.mark.parametrize("k", [2, 8, 16])
def test_a_sparse_gradient_takes_launches_for_the_list(kernels, k):
    asked = []
    for listed in (2, 3):
        bank = unitary(kernels, 7, 16, 16)
        optimizer = optimizer_of("SGD", [bank], rank=k)
        with watched(kernels, run=False) as seen:
            for _ in range(2):
                optimizer.zero_grad()
                projunn.nn.select_blocks(
                    bank, torch.arange(listed, device=kernels.device)
                ).square().sum().backward()
                optimizer.step()
        asked.append((seen.kernels, list(seen.calls)))
    assert asked[0] == asked[1]


def columns_first(tensor):
    """The same numbers, each matrix column by column: as the decompositions of torch.linalg return
    them.
    """
    return tensor.mT.contiguous().mT


def batch_last(tensor):
    """The same numbers, the first axis of the batch innermost: such axes cannot be viewed as one."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def stepped(weight, **options):
    """An optimizer of rank 2 that has taken one step, in PyTorch."""
    optimizer = optimizer_of("SGD", [weight], rank=2, **options)
    feed(weight)
    optimizer.step()
    return optimizer


@REAL_AND_COMPLEX
def test_state_is_contiguous_however_it_came(kernels, kind):
    """A basis as QR leaves it kept every step of rank > 1 from the one launch."""
    weight = unitary(kernels, 3, 16, 16, kind=kind)
    with kernels.backend():
        optimizer = stepped(weight)
    old = copy.deepcopy(optimizer.state_dict())
    for name in ("basis", "probe", "momentum_buffer"):
        old["state"][0][name] = columns_first(old["state"][0][name])
        assert not old["state"][0][name].is_contiguous()
    loaded = optimizer_of("SGD", [unitary(kernels, 3, 16, 16, kind=kind)], rank=2)
    loaded.load_state_dict(old)
    copied = copy.deepcopy(optimizer)
    revived = optimizer_of("SGD", [weight], rank=2)
    revived.__setstate__({"state": {weight: dict(old["state"][0])}})  # as unpickling calls it
    for own in (optimizer, loaded, copied, revived):
        (state,) = own.state.values()
        assert all(value.is_contiguous() for value in state.values())
        assert torch.equal(state["basis"], optimizer.state[weight]["basis"])
        (p,) = own.param_groups[0]["params"]
        feed(p)
        with watched(kernels, run=False) as seen:
            own.step()
        assert seen.kernels == budget(2, 16, 16, 3)


@REAL_AND_COMPLEX
@pytest.mark.parametrize(("k", "size"), [(1, (4, 4)), (1, (4, 130)), (9, (10, 12))])
def test_strides_change_no_number(kernels, kind, k, size):
    """Nor a launch, but that a rule has one of its own where averages or weights do not lie flat."""
    start = unitary(kernels, 2, 2, *size, kind=kind).detach()
    gradient = torch.randn_like(start)
    results = []
    for layout in (torch.Tensor.contiguous, columns_first, batch_last):
        weight = projunn.UnitaryParameter(layout(start.clone()))
        optimizer = optimizer_of("SGD", [weight], rank=k)
        weight.grad = layout(gradient)
        with watched(kernels) as seen:
            optimizer.step()
        first_basis = ["gather", *["triangle", "combine"] * 2] if k > 8 else []
        flat = layout is torch.Tensor.contiguous
        step = budget(k, *size, 4) if flat else [*FOLLOWED, *_plain_budget(k, *size, 4, kind)]
        assert seen.kernels == [*first_basis, *step]
        results.append(weight.detach().contiguous())
    assert not torch.equal(results[0], start)
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(results[2], results[0], atol=1e-6, rtol=0)


@REAL_AND_COMPLEX
@pytest.mark.parametrize(
    ("k", "size", "retraction"),
    [
        (2, (4, 6), "exp"),
        (12, (20, 20), "exp"),
        (12, (20, 20), "polar"),
        (12, (20, 20), "cayley"),
        (9, (24, 10), "polar"),
    ],
)
def test_equals_the_step_in_pytorch(kernels, kind, k, size, retraction):
    start = unitary(kernels, 1 if k == 2 else 3, *size, kind=kind).detach()
    gradient = torch.randn_like(start)
    found = []
    for backend in ("torch", kernels.name):
        weight = projunn.UnitaryParameter(start.clone())
        optimizer = optimizer_of("SGD", [weight], rank=k, retraction=retraction)
        weight.grad = gradient.clone()
        with projunn.backend(backend):
            optimizer.step()
        found.append(weight.detach())
        assert optimizer.skipped_steps() == 0
        assert defect(found[-1].cpu()) < 1e-6
    torch.testing.assert_close(*found, atol=3e-6, rtol=0)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(
    ("kind", "k", "size"),
    [
        (torch.float32, 2, (4, 4)),
        (torch.float32, 2, (6, 4)),
        (torch.float32, 9, (12, 12)),
        (torch.complex64, 9, (12, 12)),
    ],
)
def test_the_basis_outlives_gradients_of_lower_rank(kernels, ours, kind, k, size):
    """Columns that such a gradient does not fill come back from the probe: no direction is lost."""
    weight = unitary(kernels, *size, kind=kind)
    optimizer = optimizer_of("SGD", [weight], rank=k, momentum=0, nesterov=False)
    column, row = (torch.randn(n, dtype=kind).to(kernels.device) for n in size)
    with projunn.backend(kernels.name if ours else "torch"):
        for scale in (1.0, 0.0, 1.0):
            weight.grad = (scale * column[:, None] * row).expand_as(weight).clone()
            optimizer.step()
            values = torch.linalg.svdvals(optimizer.state[weight]["basis"])
            assert values.isfinite().all()
            assert (values[..., -1] > 1e-3 * values[..., 0]).all()
    assert optimizer.skipped_steps() == 0
    assert defect(weight.detach().cpu()) < 1e-6


@pytest.mark.parametrize("size", [(6, 6), (4, 130)], ids=str)
def test_a_one_hot_input_alone_in_its_batch_is_learned_from(kernels, size):
    """Its gradient has one column.

    Orthonormalizing multiples of it, to the bit, made factors of size 1e7 of it for large matrices,
    whose steps were refused or wild.
    """
    start = unitary(kernels, *size).detach()
    gradient = torch.zeros_like(start)
    gradient[:, 3] = torch.randn(size[0], device=kernels.device)
    found = []
    for backend in ("torch", kernels.name):
        weight = projunn.UnitaryParameter(start.clone())
        optimizer = optimizer_of("SGD", [weight], lr=3.2, rank=2, momentum=0, nesterov=False)
        weight.grad = gradient.clone()
        with projunn.backend(backend):
            optimizer.step()
            optimizer.step()
        assert optimizer.skipped_steps() == 0
        found.append(weight.detach())
    assert (found[0] - start).abs().max() > 0.01
    torch.testing.assert_close(*found, atol=3e-6, rtol=0)
