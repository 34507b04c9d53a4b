"""Unitary convolutions with small kernels: exact for every image, before and after training."""

import pytest
import torch
from torch import nn

import projunn
from projunn.nn import LocalUnitaryConv1d, LocalUnitaryConv2d, LocalUnitaryConv3d, UnitaryConv2d
from projunn.optim import SGD, RMSprop

KINDS = {1: LocalUnitaryConv1d, 2: LocalUnitaryConv2d, 3: LocalUnitaryConv3d}
CASES = [
    ((7,), 3, {}),
    ((6, 5), 3, {}),
    ((6, 5), (1, 2), {}),
    ((5, 6), (2, 4), {"stride": 2}),
    ((3, 4, 4), (2, 3, 1), {}),
    ((4, 4), 1, {}),
]
CHANNELS = [(4, 4), (3, 16), (4, 2), (1, 5), (1, 1)]
every_case = pytest.mark.parametrize(("size", "kernel", "options"), CASES)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])


def make(channels, size, kernel, dtype=torch.float64, **options):
    """A layer whose kernel fills its window."""
    layer = KINDS[len(size)](*channels, kernel, dtype=dtype, **options)
    for parameter in projunn.unitary_parameters(layer):
        projunn.init.haar_(parameter)
    return layer


@every_case
@both_dtypes
@pytest.mark.parametrize("channels", CHANNELS)
def test_norms_are_kept(channels, dtype, size, kernel, options):
    layer = make(channels, size, kernel, dtype, bias=False, **options)
    x = torch.randn(2, channels[0], *size, dtype=dtype)
    rows, columns = layer.kernel().shape[:2]
    if rows >= columns:
        torch.testing.assert_close(layer(x).norm(), x.norm())
    else:
        assert layer(x).norm() <= x.norm() * (1 + 1e-12)


@both_dtypes
def test_the_transfer_function_is_unitary_everywhere(dtype):
    kernel = make((4, 4), (1, 1), (3, 4), dtype).kernel()
    response = torch.fft.fftn(kernel, s=(31, 33), dim=(-2, -1)).permute(2, 3, 0, 1)
    identity = torch.eye(4, dtype=torch.complex128).expand_as(response)
    torch.testing.assert_close(response @ response.mH, identity)


@every_case
@both_dtypes
def test_is_a_correlation_with_its_kernel(dtype, size, kernel, options):
    if options:
        pytest.skip("the taps of a strided layer are cells: the norms say that they are right")
    layer = make((3, 5), size, kernel, dtype)
    nn.init.normal_(layer.bias)
    x, taps, axes = torch.randn(2, 3, *size, dtype=dtype), layer.kernel(), tuple(range(2, 2 + len(size)))
    places = torch.cartesian_prod(*(torch.arange(k) for k in layer.kernel_size)).view(-1, len(size))
    expected = layer._numbers(layer.bias).view(-1, *(1 for _ in size))
    for q in places.tolist():
        shifts = [(k - 1) // 2 - i for i, k in zip(q, layer.kernel_size, strict=True)]
        expected = expected + torch.einsum("oc,bc...->bo...", taps[(..., *q)], x.roll(shifts, axes))
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_zero_padding_loses_what_leaves_the_image_and_nothing_grows():
    layer = make((4, 4), (6, 6), 3, padding_mode="zeros", bias=False)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    assert 0.5 * x.norm() < layer(x).norm() < x.norm()
    inner = torch.zeros_like(x)
    inner[..., 1:-1, 1:-1] = x[..., 1:-1, 1:-1]
    torch.testing.assert_close(layer(inner).norm(), inner.norm())


@pytest.mark.parametrize("rule", [SGD, RMSprop])
@pytest.mark.parametrize("options", [{}, {"stride": 2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_norms_are_kept_after_training(rule, options, dtype):
    layer = make((3, 12), (6, 5), 3, dtype, bias=False, **options)
    optimizer = rule(layer.parameters(), lr=1e-2, unitary_lr=0.2 if rule is SGD else 0.02)
    source = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 6, 5, generator=source)
    target = torch.randn(layer(x).shape, generator=source, dtype=dtype)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (layer(x) - target).abs().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]  # at most 0.944 with 6 seeds
    sizes = layer(x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert (sizes - 1).abs().max() < 1e-5


def test_a_layer_can_learn_another_ones_kernel():
    torch.manual_seed(11)  # from half of all starts it ends in a local minimum
    teacher, student = (make((4, 4), (8, 8), 3, torch.float32, bias=False) for _ in range(2))
    optimizer = RMSprop(student.parameters(), lr=1e-2, unitary_lr=0.05, rank=2)
    for _ in range(200):
        x = torch.randn(8, 4, 8, 8)
        optimizer.zero_grad()
        loss = (student(x) - teacher(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.2  # 1.8 at the start


def test_starts_with_one_tap():
    sizes = LocalUnitaryConv2d(4, 4, 3).kernel().detach().square().sum((0, 1))
    assert sizes[1, 1] == pytest.approx(4, abs=1e-5)
    assert sizes.sum() == pytest.approx(4, abs=1e-5)


@pytest.mark.parametrize(("kernel", "axes"), [(21, 1), (7, 2)])
def test_a_new_layer_has_no_subnormal_numbers_and_all_derivatives(kernel, axes):
    torch.manual_seed(0)
    layer = KINDS[axes](8, 8, kernel)
    taps = layer.kernel()
    assert not ((taps != 0) & (taps.abs() < torch.finfo(taps.dtype).tiny)).any()
    direction = torch.randn_like(taps)
    (taps * direction).sum().backward()
    assert layer.directions.grad.abs().amax((1, 2)).min() > 0.1


def test_any_image_goes_through():
    layer = LocalUnitaryConv2d(2, 2, 3, bias=False)
    for size in ((3, 4), (8, 8), (2, 9)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(layer(x).norm(), x.norm())


def test_compiles_to_one_graph():
    layer = make((2, 3), (5, 5), 3)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_repr():
    layer = LocalUnitaryConv2d(2, 4, (3, 1), 2, False, "zeros")
    text = "LocalUnitaryConv2d(2, 4, kernel_size=(3, 1), stride=(2, 2), bias=False, padding_mode=zeros)"
    assert repr(layer) == text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LocalUnitaryConv2d(1, 1, 0), "kernel_size: got 0"),
        (lambda: LocalUnitaryConv2d(1, 1, 3, padding_mode="reflect"), "padding_mode: got 'reflect'"),
        (
            lambda: LocalUnitaryConv2d(1, 1, 3)(torch.ones(1, 2, 4, 4)),
            r"input: got shape \(1, 2, 4, 4\)",
        ),
        (lambda: LocalUnitaryConv2d(1, 1, 5)(torch.ones(1, 1, 3, 8)), "smaller than the kernel"),
    ],
)
def test_errors_name_the_argument(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


@pytest.mark.parametrize(
    "layer",
    [
        LocalUnitaryConv2d(4, 4, (3, 2), dtype=torch.float64),
        UnitaryConv2d(1, 4, (5, 4), stride=2, dtype=torch.float64),  # which has no adjoint()
    ],
)
def test_vjp_is_the_inverse_and_has_a_gradient_for_the_layer(layer):
    """What docs/modules.md tells flows to write."""
    x = torch.randn(2, layer.in_channels, 5, 4, dtype=torch.float64)
    y = layer(x)
    back = torch.func.vjp(layer, torch.zeros_like(x))[1](y.detach() - layer.bias[:, None, None])[0]
    torch.testing.assert_close(back, x)
    assert torch.autograd.grad(back.square().sum(dim=0).cos().sum(), layer.weight)[0].norm() > 1e-3
