"""What `torch.utils.flop_counter` counts of the layers: their products, forward and backward."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from projunn.nn import BlockUnitaryLinear, UnitaryConv2d, UnitaryLinear, UnitaryRNN

T, B, M, N = 5, 3, 10, 16


def counted(layer, *shape, dtype=torch.float32, grad=True):
    x = torch.randn(*shape, dtype=dtype, requires_grad=grad)
    layer = layer.to(x.device)
    with FlopCounterMode(display=False) as forward:
        output = layer(x)
        output = output[0] if isinstance(output, tuple) else output
    with FlopCounterMode(display=False) as backward:
        output.backward(torch.ones_like(output))
    return forward.get_total_flops(), backward.get_total_flops()


def test_a_recurrence():
    rows = T * B
    assert counted(UnitaryRNN(M, N), T, B, M) == (
        2 * rows * (M * N + N * N),
        2 * rows * (2 * M * N + 2 * N * N),
    )
    packed, _ = counted(UnitaryRNN(M, N, num_layers=2, bidirectional=True), T, B, M)
    assert packed == 2 * 2 * rows * (M * N + N * N + 2 * N * N + N * N)


def test_a_complex_recurrence_counts_real_products():
    """A complex product is four real ones; the input is real."""
    rows = T * B
    forward, backward = counted(UnitaryRNN(M, N, dtype=torch.complex64), T, B, M)
    assert forward == 2 * rows * (2 * M * N + 4 * N * N)
    assert backward == 2 * rows * (2 * 2 * M * N + 2 * 4 * N * N)


def test_a_convolution_counts_its_products_at_the_frequencies():
    """30 pairs of frequencies with complex matrices, and 4 with real ones; no Fourier transform."""
    products = 2 * B * M * N * (30 * 4 + 4)
    assert counted(UnitaryConv2d(M, N, (8, 8)), B, M, 8, 8) == (products, 2 * products)
    _, backward = counted(UnitaryConv2d(M, N, (8, 8)), B, M, 8, 8, grad=False)
    assert backward == products
    halves, _ = counted(UnitaryConv2d(M, N, (8, 8), groups=2), B, M, 8, 8)
    assert halves == products // 2
    at_64 = counted(
        UnitaryConv2d(M, N, (8, 8), dtype=torch.complex64), B, M, 8, 8, dtype=torch.complex64
    )
    assert at_64 == (2 * B * M * N * 64 * 4, 2 * 2 * B * M * N * 64 * 4)


@pytest.mark.parametrize("k", [1, 2])
def test_sketched_gradients_count_their_own_products(k):
    linear, x = UnitaryLinear(M, N, sketch_rank=k), (B, M)
    assert counted(linear, *x)[1] == 2 * B * (M * N + 2 * k * (M + N))
    _, by_recurrence = counted(UnitaryRNN(M, N, sketch_rank=k), T, B, M)
    assert by_recurrence == 2 * T * B * (2 * M * N + N * N + 4 * k * N)
    _, by_convolution = counted(UnitaryConv2d(M, N, (8, 8), sketch_rank=k), B, M, 8, 8)
    assert by_convolution == 2 * B * (30 * 4 + 4) * (M * N + 2 * k * (M + N))
    blocks = BlockUnitaryLinear(2, 8, bias=False, sketch_rank=k)
    forward, backward = counted(blocks, B, N)
    assert 0 < forward <= backward


def test_without_numbers():
    meta = UnitaryRNN(M, N, device="meta")
    with FlopCounterMode(display=False) as counter:
        meta(torch.empty(T, B, M, device="meta"))
    assert counter.get_total_flops() == 2 * T * B * (M * N + N * N)


def test_counting_changes_no_number():
    layer, x = UnitaryRNN(M, N), torch.randn(T, B, M)
    plain, _ = layer(x)
    with FlopCounterMode(display=False):
        seen, _ = layer(x)
    assert torch.equal(plain, seen)


def test_triton_is_not_imported_for_it():
    program = "import sys, projunn; raise SystemExit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
