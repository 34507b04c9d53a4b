"""Inputs and gradients whose memory holds something else than their numbers, row by row."""

import pytest
import torch

from projunn.models import EUNNLinear
from projunn.nn import (
    BlockUnitaryLinear,
    LocalUnitaryConv2d,
    UnitaryConv2d,
    UnitaryConvTranspose2d,
    UnitaryLinear,
    UnitaryRNN,
    UnitaryRNNCell,
)

LAYERS = {
    "linear": (lambda **o: UnitaryLinear(4, 5, **o), (2, 4)),
    "blocks": (lambda **o: BlockUnitaryLinear(2, 2, num_factors=2, **o), (2, 4)),
    "recurrent": (lambda **o: UnitaryRNN(4, 4, 2, bidirectional=True, **o), (5, 2, 4)),
    "cell": (lambda **o: UnitaryRNNCell(4, 4, **o), (2, 4)),
    "convolution": (lambda **o: UnitaryConv2d(2, 8, 4, stride=2, **o), (2, 2, 4, 4)),
    "transposed": (lambda **o: UnitaryConvTranspose2d(4, 1, 3, stride=2, **o), (2, 4, 3, 3)),
    "local": (lambda **o: LocalUnitaryConv2d(2, 3, 3, **o), (2, 2, 4, 4)),
    "EUNN": (lambda **o: EUNNLinear(4, **o), (2, 4)),
}
SKETCHED = ("linear", "blocks", "recurrent", "cell", "convolution", "transposed")


def views(x):
    yield x[:1].expand_as(x)
    yield torch.cat([x, x], -1)[..., ::2]
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield x.conj() if x.is_complex() else torch._neg_view(x)
    yield x.mT.contiguous().mH if x.is_complex() else torch.complex(x, x).conj().imag


def plain(x):
    return x.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def dense(gradient):
    return gradient if type(gradient) is torch.Tensor else gradient.to_dense()


def output_and_gradients(layer, x, cotangent=None):
    layer.zero_grad()
    y = layer(x)
    y = y[0] if isinstance(y, tuple) else y
    cotangent = torch.linspace(0, 1, y.numel(), dtype=y.dtype) if cotangent is None else cotangent
    y.backward(cotangent.view_as(y))
    return [y.detach(), *(dense(p.grad) for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("sketch_rank", [None, 2], ids=["dense", "sketched"])
def test_views_are_what_they_stand_for(name, dtype, sketch_rank):
    make, shape = LAYERS[name]
    if sketch_rank and name not in SKETCHED:
        pytest.skip("it has no sketched gradients")
    layer = make(dtype=dtype, **({"sketch_rank": sketch_rank} if sketch_rank else {}))
    x = torch.randn(shape, dtype=dtype)
    for view in views(x):
        found, expected = (output_and_gradients(layer, one) for one in (view, plain(view)))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    for view in views(torch.randn_like(found[0])):
        found, expected = (output_and_gradients(layer, x, one) for one in (view, plain(view)))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [UnitaryRNN, UnitaryRNNCell])
@pytest.mark.parametrize("sketch_rank", [None, 2], ids=["dense", "sketched"])
def test_a_state_may_be_a_conjugate(kind, sketch_rank):
    layer = kind(3, 4, dtype=torch.complex128, sketch_rank=sketch_rank)
    time = (1,) if kind is UnitaryRNN else ()
    x = torch.randn(*time, 2, 3, dtype=torch.complex128)
    state = torch.randn(*time, 2, 4, dtype=torch.complex128).conj()
    torch.testing.assert_close(layer(x, state)[0], layer(x, plain(state))[0])
