"""The projection of narrow inputs against ``functional.linear``."""

import pytest
import torch
from torch.nn import functional

from projunn.kernels import projection


@pytest.mark.parametrize("shape", [(7,), (3, 5), (11, 100), (0, 4)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_linear(shape, with_bias):
    def draw(*size):
        return torch.randn(size, dtype=torch.float64, requires_grad=True)

    x, weight, bias = draw(*shape, 3), draw(8, 3), draw(8) if with_bias else None
    ours, theirs = projection(x, weight, bias), functional.linear(x, weight, bias)
    torch.testing.assert_close(ours, theirs)
    wanted = [t for t in (x, weight, bias) if t is not None]
    cotangent = torch.randn_like(ours)
    for own, other in zip(
        torch.autograd.grad(ours, wanted, cotangent),
        torch.autograd.grad(theirs, wanted, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_operator():
    arguments = [torch.randn(s, requires_grad=True) for s in ((6, 3), (8, 3), (8,))]
    torch.library.opcheck(torch.ops.projunn.projection.default, arguments)
    strided = torch.randn(4, 6, 3).transpose(0, 1)
    weight = torch.randn(8, 3)
    torch.testing.assert_close(projection(strided, weight, None), functional.linear(strided, weight))


def test_autocast_is_that_of_linear():
    with torch.autocast("cpu", torch.bfloat16):
        assert projection(torch.randn(6, 3), torch.randn(8, 3), None).dtype == torch.bfloat16
