"""cos and sin without a subroutine."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

if not torch.cuda.is_available():
    from projunn.kernels.jit.plane import cos_sin


@triton.jit
def _kernel(x, c, s, N: tl.constexpr):
    at = tl.arange(0, N)
    cosine, sine = cos_sin(tl.load(x + at))
    tl.store(c + at, cosine)
    tl.store(s + at, sine)


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter")
def test_cos_sin_to_rounding():
    x = torch.cat([torch.linspace(-8, 8, 2048), torch.linspace(-3e4, 3e4, 2048)]).double()
    c, s = torch.empty_like(x), torch.empty_like(x)
    _kernel[(1,)](x, c, s, N=4096)
    torch.testing.assert_close(c, x.cos(), rtol=0, atol=3e-16)
    torch.testing.assert_close(s, x.sin(), rtol=0, atol=3e-16)
