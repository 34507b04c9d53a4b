"""What the self-checks of kernels run on: small problems that take every turn that calls take."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from projunn_kernels import selfcheck
from projunn_kernels.configs.closed_form import closed_form
from projunn_kernels.configs.kernel import KERNELS, Inputs
from projunn_kernels.configs.problem import Config, Device, Problem
from projunn_kernels.factorization.launch import Parts
from projunn_kernels.language.blocks import SPREAD
from projunn_kernels.language.small import SOUND
from projunn_kernels.retraction import RETRACTIONS
from projunn_kernels.retraction.rotations import named

CPU = torch.device("cpu")


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("k", [9, 64])
def test_steps_of_many_columns_are_checked_below_and_above_the_limit_of_their_polynomial(pairs, k):
    """What is found above it would otherwise hide what the polynomial has made."""
    kernel = KERNELS["turn"]
    problem = replace(kernel.compiled[0], k=k, pairs=pairs)
    small = selfcheck.smaller(kernel, problem, closed_form(problem, Device()))
    for how in map(named, RETRACTIONS):
        drawn = kernel.case(small, Inputs(CPU), retraction=how.name, scaled=False).tensors
        e = drawn["weight"].mH @ drawn["left"] @ drawn["right"].mH
        of = e + e.mH + e.mH @ e if how.of_defect else (e - e.mH) / 2
        large = torch.linalg.matrix_norm(of) > how.limit
        assert large.any(), how.name
        assert not large.all(), how.name


@pytest.mark.parametrize(
    ("name", "tensor", "variant"),
    [
        ("orthonormal", "partial", {"alone": False}),
        ("basis", "right", {"retraction": "exp", "scaled": False}),
        ("basis", "left", {"retraction": "exp", "scaled": False, "warm": True}),
        ("triangle", "rows", {"keep": True}),
    ],
)
def test_dependent_columns_are_checked_too(name, tensor, variant):
    """They take a second Cholesky factor, or one that is corrected; others take one as it is."""
    kernel = KERNELS[name]
    problem = min((one for one in kernel.compiled if one.k > 1), key=lambda one: (one.pairs, one.k))
    small = selfcheck.smaller(kernel, problem, closed_form(problem, Device()))
    drawn = kernel.case(small, Inputs(CPU), **variant).tensors[tensor].double()
    drawn = drawn[drawn.isfinite().flatten(1).all(1)]  # without a step that is not taken
    rows = drawn.sum(1) if tensor == "partial" else drawn if tensor == "rows" else drawn.mT
    rows = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    pivots = torch.linalg.cholesky(rows @ rows.mT).diagonal(dim1=-2, dim2=-1).square()
    least = pivots.amin(-1)
    assert least[0] > SPREAD.value
    assert least[-1] < SOUND.value


@pytest.mark.parametrize("name", ["recurrence", "recurrence_backward", "adjoint_many", "product_many"])
def test_loops_have_turns_between_those_that_are_made_ahead(name):
    """A compiler makes the first turns of a loop of products ahead, and the last ones behind it."""
    kernel, longest = KERNELS[name], {"product_many": 4, "adjoint_many": 8}
    for problem in kernel.compiled:
        config = closed_form(problem, Device())
        if not config.hold:
            small = selfcheck.smaller(kernel, problem, config)
            if name in longest:
                side, each = (
                    (small.m, config.rows) if name == "adjoint_many" else (small.n, config.columns)
                )
                assert side > longest[name] * each
            else:
                assert small.n > (config.stages + 1) * config.depth


def test_parts_of_columns_are_checked_with_several_turns():
    for name in ("orthonormal", "basis"):
        problem = next(one for one in KERNELS[name].compiled if one.k == 2)
        config = closed_form(problem, Device())
        small = selfcheck.smaller(KERNELS[name], problem, config)
        columns = torch.randn(2, 1, small.k, small.n)
        shared = Parts.of(columns, 4, False, config)
        assert shared.parts > 8  # as many as are added up at a time
        assert shared.each > 2 * config.columns


def test_transforms_are_checked_on_images_like_those_of_the_call():
    """Sides as they are, several images, and as many planes by 16 as Triton compiles for."""
    kernel = KERNELS["fourier_transform"]
    for m, n, planes in ((28, 27, 256), (9, 31, 21), (1, 40, 64)):
        problem = Problem("fourier_transform", False, 1, m, n, planes)
        small = selfcheck.smaller(kernel, problem, closed_form(problem, Device()))
        assert (small.m, small.n, small.matrices % 16 == 0) == (m, n, planes % 16 == 0)
        for apart in (False, True):
            drawn = kernel.case(small, Inputs(CPU), precision="highest", apart=apart).tensors["signal"]
            assert drawn.is_contiguous() != apart
            assert len(drawn) > 1


def test_a_size_that_is_a_multiple_of_16_is_one_in_the_check():
    for m, n in ((64, 20), (32, 200)):
        problem = replace(KERNELS["recurrence"].compiled[0], m=m, n=n)
        small = selfcheck.smaller(KERNELS["recurrence"], problem, Config(16, 64, 4, hold=True))
        assert small.m % 16 == 0, (m, n)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("fused_step", "direction"),
        ("rotate_ahead", "directions"),
        ("plane_rows", "left"),
        ("basis", "left"),
        ("turn", "left"),
    ],
)
def test_a_step_that_is_not_taken_is_checked(name, tensor):
    """And one along zero, where kernels branch at it."""
    kernel = KERNELS[name]
    problem = min(kernel.compiled, key=lambda one: (one.pairs, one.n, one.k))
    small = selfcheck.smaller(kernel, problem, closed_form(problem, Device()))
    drawn = kernel.case(small, Inputs(CPU), **next(kernel.variants_of(problem))).tensors[tensor]
    steps = drawn[-1] if name == "rotate_ahead" else drawn
    assert {True, False} == set(steps.isfinite().flatten(1).all(1).tolist())
    assert (steps == 0).flatten(1).all(1).any() == (tensor != "left")
