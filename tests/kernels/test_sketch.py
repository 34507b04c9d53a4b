"""Factors of a gradient that is never formed, against those of the gradient."""

import pytest
import torch

from projunn_kernels import factor, sketch
from projunn_kernels.sketching.reference import sketch as sketch_reference
from tests.dense import precise


def problem(dtype, batch=(), rows=7, n=5, m=6, k=2):
    x = torch.randn(*batch, rows, n, dtype=dtype)
    g = torch.randn(*batch, rows, m, dtype=dtype)
    return x, g, torch.randn(*batch, m, k, dtype=dtype)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_factors_of_the_gradient(dtype, batch, k, rows):
    x, g, basis = problem(dtype, batch, rows, k=k)
    left, right = sketch([x], [g], basis)
    gradient = g.mT @ x.conj()
    if rows >= k:  # else the right factor is not unique
        expected = factor(gradient, basis)
        torch.testing.assert_close(left @ right.mH, expected[0] @ expected[1].mH, atol=1e-4, rtol=1e-4)
        reference = sketch_reference(x, g, basis)
        torch.testing.assert_close(left @ right.mH, reference[0] @ reference[1].mH, atol=1e-4, rtol=1e-4)
    if rows <= k == 5:  # all of it
        torch.testing.assert_close(left @ right.mH, gradient, atol=1e-4, rtol=1e-4)
    gram = right.mH @ right  # columns that depend on the others may be zero
    torch.testing.assert_close(gram @ gram, gram)
    kept = gram.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    assert (kept > torch.linalg.matrix_rank(gradient).clamp_max(k) - 1e-3).all()
    assert left.is_contiguous()
    assert right.is_contiguous()


def test_error_in_float32_is_that_of_the_formed_gradient():
    x, g, basis = problem(torch.float64, rows=300, n=64, m=48, k=4)
    exact = next(f[0] @ f[1].mH for f in (sketch_reference(x, g, basis),))
    small = [t.float() for t in (x, g, basis)]
    errors = []
    x, g, basis = small
    for left, right in (sketch([x], [g], basis), sketch_reference(x, g, basis)):
        errors.append((left.double() @ right.double().mH - exact).norm() / exact.norm())
    assert errors[0] <= 4 * errors[1] + 1e-7, errors


def test_no_rows_and_zero_rows_give_a_zero_left_factor():
    for k in (1, 3):
        for rows in (0, 4):
            x, g, basis = problem(torch.float32, rows=rows, k=k)
            left, right = sketch([x], [torch.zeros_like(g)], basis)
            assert left.shape == (6, k)
            assert right.shape == (5, k)
            assert left.count_nonzero() == 0
            assert right.isfinite().all()


def test_half_precision_gradients_are_read_as_they_are():
    x, g, basis = problem(torch.float32, rows=32, k=1)
    left, right = sketch([x], [g.bfloat16()], basis)
    assert left.dtype == right.dtype == torch.float32
    expected = sketch([x], [g], basis)
    full = expected[0] @ expected[1].mH
    assert (left @ right.mH - full).norm() < 0.03 * full.norm()


def test_sums_over_several_and_reads_pairs():
    x, g, basis = problem(torch.complex64, (2,), rows=12)
    left, right = sketch([x], [g], basis)
    parts = [x[:, :5], x[:, 5:]], [g[:, :5], g[:, 5:]]
    for own, other in zip(sketch(*parts, basis), (left, right), strict=True):
        torch.testing.assert_close(own, other)
    stored = [[torch.view_as_real(t.contiguous()) for t in tensors] for tensors in parts]
    for inputs in (parts[0], stored[0]):
        factors = sketch(inputs, stored[1], torch.view_as_real(basis), pairs=True)
        for own, other in zip(factors, (left, right), strict=True):
            torch.testing.assert_close(torch.view_as_complex(own), other)


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
def test_operator(kind):
    x, g, basis = problem(kind, (2,))
    torch.library.opcheck(torch.ops.projunn.sketch, ([x], [g], basis, False))
    if kind.is_complex:
        stored = [torch.view_as_real(t) for t in (x, g, basis)]
        torch.library.opcheck(torch.ops.projunn.sketch, ([stored[0]], [stored[1]], stored[2], True))


# -- Triton's kernels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "pairs"), [(torch.float32, False), (torch.complex64, False), (torch.complex64, True)]
)
@pytest.mark.parametrize("k", [1, 2, 5, 9])  # 9 are left to PyTorch
@pytest.mark.parametrize("batch", [(), (2,)])
def test_kernels_equal_float64(kernels, kind, k, batch, pairs):
    tensors = problem(kind, batch, rows=70, n=33, m=20, k=k)
    x, g, basis = (t.to(kernels.device) for t in tensors)
    parts = [x[..., :5, :], x[..., 5:, :]], [g[..., :5, :], g[..., 5:, :]]
    exact = sketch_reference(*(precise(t) for t in (x, g, basis)))
    with kernels.backend():
        left, right = sketch(*parts, torch.view_as_real(basis) if pairs else basis, pairs)
    if pairs:
        left, right = torch.view_as_complex(left), torch.view_as_complex(right)
    expected = exact[0] @ exact[1].mH
    assert (precise(left @ right.mH) - expected).abs().max() < 1e-5 * expected.abs().max()
    identity = torch.eye(k, dtype=expected.dtype).expand(*batch, k, k)
    torch.testing.assert_close(precise(right).mH @ precise(right), identity, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_launches_kept_from_sketch_to_sketch(kernels, kind, k):
    """Of other tensors of the same shapes; the factors that were made before stay what they are."""
    problems = [tuple(t.to(kernels.device) for t in problem(kind, k=k)) for _ in range(3)]
    with kernels.backend():
        found = [sketch([x], [g], basis) for x, g, basis in problems]
    for tensors, (left, right) in zip(problems, found, strict=True):
        exact = sketch_reference(*map(precise, tensors))
        torch.testing.assert_close(
            precise(left @ right.mH), exact[0] @ exact[1].mH, atol=1e-4, rtol=1e-4
        )


def test_kernels_read_half_precision_and_zeros(kernels):
    x, g, basis = (t.to(kernels.device) for t in problem(torch.float32, rows=32, k=2))
    with kernels.backend():
        left, right = sketch([x], [g.bfloat16()], basis)
        nothing, some = sketch([x], [torch.zeros_like(g)], basis)
        empty, _ = sketch([x[:0]], [g[:0]], basis)
    expected = sketch([x.cpu()], [g.cpu()], basis.cpu())
    full = expected[0] @ expected[1].mH
    assert ((left @ right.mH).cpu() - full).norm() < 0.03 * full.norm()
    assert nothing.count_nonzero() == empty.count_nonzero() == 0
    assert some.isfinite().all()


@pytest.mark.parametrize("k", [1, 3])
def test_launches_kept_in_inference_mode_serve_training(kernels, k):
    """What lies between them may be written to later."""
    tensors = [t.to(kernels.device) for t in problem(torch.float32, rows=11, n=13, m=9, k=k)]
    x, g, basis = tensors
    with kernels.backend():
        with torch.inference_mode():
            first = sketch([x], [g], basis)
        for found, before in zip(sketch([x], [g], basis), first, strict=True):
            assert torch.equal(found, before)
