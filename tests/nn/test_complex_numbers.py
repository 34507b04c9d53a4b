"""Complex dtypes of modules that store reals, and complex tensors in the place of pairs of reals."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import projunn
from projunn.models import EUNNLinear
from projunn.nn import ModReLU, UnitaryConv1d, UnitaryLinear, UnitaryRNN


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("make", [lambda: ModReLU(4), lambda: EUNNLinear(4, dtype=torch.complex64)])
def test_real_parameters_stay_real_when_a_model_is_made_complex128(make):
    """They became complex, and the first call raised an error of PyTorch's."""
    model = nn.Sequential(UnitaryLinear(4, 4, dtype=torch.complex64), make())
    x = torch.randn(3, 4, dtype=torch.complex128)
    before = model(x.to(torch.complex64))
    model.to(torch.complex128)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    torch.testing.assert_close(model(x), before.to(torch.complex128), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UnitaryLinear(4, 4, dtype=torch.complex64),
        lambda: UnitaryRNN(4, 4, dtype=torch.complex64),
        lambda: UnitaryConv1d(4, 4, 1, bias=False, dtype=torch.complex64),
    ],
)
def test_complex_numbers_in_the_place_of_pairs_are_refused_in_words(make):
    """They raised an error about ``view_as_complex``, or about a product of two dtypes."""
    layer = make()
    named = layer.named_parameters()
    name, weight = next((n, p) for n, p in named if isinstance(p, projunn.UnitaryParameter))
    given = torch.view_as_complex(weight.detach()).clone()
    x = torch.randn(4, 4, 4, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"weight: got torch\.complex64 .* wanted pairs of reals"):
        functional_call(layer, {name: given}, (x,))
    setattr(layer, name, nn.Parameter(given))
    with pytest.raises(TypeError, match=r"weight: got torch\.complex64 .* wanted pairs of reals"):
        layer(x)
