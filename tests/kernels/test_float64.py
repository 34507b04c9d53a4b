"""Float64 arithmetic without subroutines, against PyTorch's."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from projunn_kernels.language.float64 import cos_sin, doublings, reciprocal, square_root  # noqa: E402


@triton.jit
def _kernel(x, first, second, WHAT: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(x + at)
    if WHAT == "cos_sin":
        a, b = cos_sin(value)
    elif WHAT == "doublings":
        a, b = doublings(value)
    else:
        a, b = reciprocal(value), square_root(value)
    tl.store(first + at, a.to(tl.float64))
    tl.store(second + at, b)


@pytest.fixture
def run(kernels):
    def both_results(what, x):
        x = x.to(kernels.device)
        first, second = torch.empty_like(x), torch.empty_like(x)
        _kernel[(1,)](x, first, second, WHAT=what, N=len(x))
        return first.cpu(), second.cpu()

    return both_results


def test_cos_sin_to_rounding(run):
    x = torch.cat([torch.linspace(-8, 8, 2048), torch.linspace(-3e4, 3e4, 2048)]).double()
    c, s = run("cos_sin", x)
    torch.testing.assert_close(c, x.cos(), rtol=0, atol=3e-16)
    torch.testing.assert_close(s, x.sin(), rtol=0, atol=3e-16)


def test_reciprocal_and_square_root_to_two_ulps(run):
    x = 10 ** torch.linspace(-300, 300, 4096, dtype=torch.float64)
    x[:2048] = torch.linspace(1, 4, 2048, dtype=torch.float64)
    inverse, root = run("roots", x)
    torch.testing.assert_close(inverse, 1 / x, rtol=4.5e-16, atol=0)
    torch.testing.assert_close(root, x.sqrt(), rtol=4.5e-16, atol=0)


def test_zero_and_what_is_not_finite(run):
    inverse, root = run("roots", torch.tensor([0.0, torch.inf, torch.nan, 1.0], dtype=torch.float64))
    assert root[0] == 0
    assert not root[1:3].isfinite().any()
    assert inverse[2].isnan()


def test_doublings_bring_a_norm_below_a_quarter(run):
    x = torch.tensor([0.0, 1e-300, 0.1, 0.25, 0.249, 1.0, 3.0, 2896.0], dtype=torch.float64)
    p, scale = run("doublings", x)
    assert p.tolist() == [0, 0, 0, 1, 0, 3, 4, 14]
    assert torch.equal(scale, torch.exp2(-p))
    assert (x * scale < 0.25).all()
