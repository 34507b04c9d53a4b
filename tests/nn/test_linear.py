"""Linear layers, dense and block-diagonal, and what they share."""

import pytest
import torch
from torch import nn

from projunn.nn import BlockUnitaryLinear, ModReLU, UnitaryLinear
from tests.dense import defect


@pytest.mark.parametrize("sizes", [(5, 5), (5, 8), (8, 5), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_linear(dtype, sizes, bias):
    layer = UnitaryLinear(*sizes, bias=bias, dtype=dtype)
    reference = nn.Linear(*sizes, bias=bias, dtype=dtype)
    with torch.no_grad():
        reference.weight.copy_(layer.matrix)
        if bias:
            reference.bias.copy_(layer._numbers(layer.bias))
    for shape in ((3, 4), (), (0,)):
        x = torch.randn(*shape, sizes[0], dtype=dtype)
        torch.testing.assert_close(layer(x), reference(x))
    assert defect(layer.matrix.detach()) < 1e-6
    assert all(not p.is_complex() for p in layer.parameters())
    assert layer.matrix.dtype == dtype


def test_norms_are_preserved(dtype):
    square, growing = UnitaryLinear(6, 6, False, dtype=dtype), UnitaryLinear(6, 9, False, dtype=dtype)
    x = torch.randn(10, 6, dtype=dtype)
    for layer in (square, growing, BlockUnitaryLinear(2, 3, False, num_factors=2, dtype=dtype)):
        sizes = torch.linalg.vector_norm(layer(x), dim=-1)
        torch.testing.assert_close(sizes, torch.linalg.vector_norm(x, dim=-1))


def test_complex_layer_takes_real_input():
    x = torch.randn(2, 4)
    for layer in (
        UnitaryLinear(4, 4, dtype=torch.complex64),
        BlockUnitaryLinear(2, 2, dtype=torch.complex64),
    ):
        torch.testing.assert_close(layer(x), layer(x.to(torch.complex64)))


@pytest.mark.parametrize("factors", [1, 2, 3])
def test_block_layer_is_the_product_it_says(dtype, factors):
    blocks, size = 3, 4
    layer = BlockUnitaryLinear(blocks, size, num_factors=factors, dtype=dtype)
    weight = layer.weight if not layer.is_complex else torch.view_as_complex(layer.weight)
    n = blocks * size
    shuffle = torch.eye(n, dtype=dtype).view(blocks, size, n).transpose(0, 1).reshape(n, n)
    dense = torch.block_diag(*weight[0])
    for factor in weight[1:]:
        dense = torch.block_diag(*factor) @ shuffle @ dense
    x = torch.randn(2, 5, n, dtype=dtype)
    bias = layer._numbers(layer.bias)
    torch.testing.assert_close(layer(x), x @ dense.mT + bias)
    assert defect(dense.detach()) < 1e-6
    reached = (dense.abs() > 1e-6).float().mean()
    assert reached == (1 / blocks if factors == 1 else 1)  # two factors mix everything here


def test_gradients_reach_every_parameter(dtype):
    for layer in (UnitaryLinear(6, 6, dtype=dtype), BlockUnitaryLinear(2, 3, dtype=dtype)):
        layer(torch.randn(4, 6, dtype=dtype)).abs().square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_reset_draws_anew_and_repr_tells():
    layer = UnitaryLinear(4, 5, dtype=torch.complex64)
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)
    assert repr(layer) == "UnitaryLinear(in_features=4, out_features=5, bias=True, complex)"
    block = BlockUnitaryLinear(2, 3, False, num_factors=2)
    expected = "BlockUnitaryLinear(num_blocks=2, block_size=3, num_factors=2, bias=False)"
    assert repr(block) == expected
    assert repr(ModReLU(7)) == "ModReLU(num_features=7)"


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_converted_layers_say_so():
    assert "complex" in repr(UnitaryLinear(2, 2).to(torch.complex64))
    assert "complex" in repr(BlockUnitaryLinear(2, 2).to(torch.complex64))


def test_device_and_dtype_are_factory_arguments():
    layer = UnitaryLinear(3, 3, device="meta", dtype=torch.float64)
    assert layer.weight.device.type == "meta"
    assert layer.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: UnitaryLinear(0, 3), ValueError, "in_features: got 0, wanted a positive integer"),
        (lambda: UnitaryLinear(3, 2.0), ValueError, "out_features: got 2.0"),
        (lambda: UnitaryLinear(3, 3, dtype=torch.bfloat16), TypeError, "dtype: got torch.bfloat16"),
        (lambda: BlockUnitaryLinear(2, 0), ValueError, "block_size: got 0"),
        (lambda: BlockUnitaryLinear(2, 2)(torch.ones(3)), ValueError, r"input: got shape \(3,\)"),
        (lambda: ModReLU(-1), ValueError, "num_features: got -1"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_default_dtype_of_half_precision_is_named():
    """As ``from_pretrained(dtype=torch.bfloat16)`` and Lightning's ``bf16-true`` set it for a while."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with pytest.raises(TypeError, match=r"None, which is PyTorch's default dtype, torch\.bf"):
            UnitaryLinear(3, 3)
        layer = UnitaryLinear(3, 3, dtype=torch.float32)
    finally:
        torch.set_default_dtype(usual)
    assert defect(layer.weight) < 1e-6


def test_modrelu_is_its_formula():
    layer = ModReLU(3, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    z = torch.tensor([[3 + 4j, 3 + 4j, 3 + 4j], [0.3 + 0.4j, 0, 0.3 + 0.4j]], dtype=torch.complex128)
    expected = [[2.4 + 3.2j, 3 + 4j, 3.6 + 4.8j], [0, 0, 0.9 + 1.2j]]
    torch.testing.assert_close(layer(z), torch.tensor(expected, dtype=torch.complex128))
    real = torch.tensor([[-3.0, 0.5, -0.5]], dtype=torch.float64)
    assert layer(real).tolist() == [[-2.0, 0.5, -1.5]]
    z = torch.randn(4, 3, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (z,))
