"""Layers that rearrange axes: element by element, compiled, exported and under autocast."""

import itertools

import pytest
import torch

from projunn.factored import FactoredTensor
from projunn.models import CayleyConv2d
from projunn.nn import BlockUnitaryLinear, UnitaryConv2d, UnitaryRNN
from projunn.nn.convolution.cells import (
    cells_to_channels,
    channels_to_cells,
    images_apart,
    images_together,
)

CASES = {
    "blocks": (lambda: BlockUnitaryLinear(4, 3, num_factors=3), (12,)),
    "sketched blocks": (lambda: BlockUnitaryLinear(4, 3, num_factors=3, sketch_rank=2), (12,)),
    "strided convolution": (lambda: UnitaryConv2d(2, 8, (6, 4), (3, 2)), (2, 6, 4)),
    "batch before time": (lambda: UnitaryRNN(5, 6, nonlinearity="tanh", batch_first=True), (7, 5)),
    "complex": (
        lambda: UnitaryRNN(5, 6, nonlinearity="identity", dtype=torch.complex64, batch_first=True),
        (7, 5),
    ),
    "Cayley": (lambda: CayleyConv2d(2, 8, (6, 4), 2), (2, 6, 4)),
}
every_case = pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES)


class Output(torch.nn.Module):
    """The output of a layer without the last state that a recurrent one returns with it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = self.layer(x)
        y = y[0] if isinstance(y, tuple) else y
        return torch.view_as_real(y) if y.is_complex() else y


def gradients(call, layer, x):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = call(x)
    y.square().sum().backward()
    found = [p.grad for p in layer.parameters() if p.numel()]
    return y.detach(), x.grad, *(g.to_dense() if isinstance(g, FactoredTensor) else g for g in found)


@pytest.mark.parametrize("stride", [(3,), (2, 3), (3, 1), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_positions_of_a_cell_become_channels_in_reading_order(stride, dtype):
    cells = (2, 3, 2)[: len(stride)]
    size = tuple(n * s for n, s in zip(cells, stride, strict=True))
    parts = (2,) if dtype.is_complex else ()
    x = torch.randn(3, 2, *size, *parts)
    gathered = cells_to_channels(x, stride)
    positions = list(itertools.product(*map(range, stride)))
    assert gathered.shape == (3, 2 * len(positions), *cells, *parts)
    for c, cell in itertools.product(range(2), itertools.product(*map(range, cells))):
        for number, position in enumerate(positions):
            pixel = [n * s + p for n, s, p in zip(cell, stride, position, strict=True)]
            channel = c * len(positions) + number
            assert torch.equal(gathered[:, channel, *cell], x[:, c, *pixel])
    assert torch.equal(channels_to_cells(gathered, stride), x)
    apart = images_apart(x, stride).unflatten(0, (3, -1))
    for number, position in enumerate(positions):
        every = tuple(slice(p, None, s) for p, s in zip(position, stride, strict=True))
        assert torch.equal(apart[:, number], x[:, :, *every])
    assert torch.equal(images_together(apart.flatten(0, 1), stride), x)


@pytest.mark.parametrize("of_input", [torch.float32, torch.complex64], ids=str)
def test_a_complex_projection_has_the_columns_of_its_parts(of_input):
    rnn = UnitaryRNN(3, 4, dtype=torch.complex64)
    torch.nn.init.normal_(rnn.bias_ih_l0)
    x = torch.randn(5, 2, 3, dtype=of_input)
    u, weight, bias = rnn._entry(x, rnn._layer("_l0"))
    numbers = (torch.view_as_complex(p.detach()) for p in (rnn.weight_ih_l0, rnn.bias_ih_l0))
    expected = torch.nn.functional.linear(x.to(torch.complex64), *numbers)
    found = torch.nn.functional.linear(u, weight, bias).detach()
    assert found.shape == (5, 2, 8)  # real and imaginary parts in turn
    torch.testing.assert_close(torch.complex(found[..., ::2], found[..., 1::2]), expected)


@every_case
def test_compiles_to_one_graph_at_any_batch_size(make, shape):
    layer = Output(make())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (4, 9):
        x = torch.randn(batch, *shape)
        results = zip(gradients(compiled, layer, x), gradients(layer, layer, x), strict=True)
        for found, expected in results:
            torch.testing.assert_close(found, expected)


@every_case
@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_an_exported_layer_takes_any_batch_size(make, shape, strict):
    layer = Output(make())
    sizes = ({0: torch.export.Dim("batch")},)
    given = (torch.randn(4, *shape),)
    program = torch.export.export(layer, given, dynamic_shapes=sizes, strict=strict)
    x = torch.randn(9, *shape)
    torch.testing.assert_close(program.module()(x), layer(x))


@every_case
def test_runs_under_autocast(make, shape):
    layer = Output(make())
    x = torch.randn(4, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(layer, layer, x)
    for result, expected in zip(found, gradients(layer, layer, x), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.05 * scale)


@pytest.mark.parametrize("rows", [(), (0,), (2, 0, 3)], ids=str)
def test_blocks_take_inputs_without_rows(rows):
    layer = BlockUnitaryLinear(4, 3, num_factors=2)
    x = torch.randn(*rows, 12)
    y = layer(x)
    assert y.shape == x.shape
    if not rows:
        assert torch.equal(y, layer(x[None])[0])
