"""Norms of pooling and of 1 x 1 convolutions against the matrices of the layers, at many sizes."""

import random

import pytest
import torch
from torch import nn

import projunn
from projunn.layer_bounds import bound_of
from projunn.lipschitz import _logits, operator_norm


def norm_at(layer, *size):
    """The norm of a linear layer on an image of one channel, in float64; 0 for one that is too small."""
    pixels = torch.Size(size).numel()
    try:
        outputs = layer(torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *size))
    except RuntimeError:
        return 0.0
    return torch.linalg.matrix_norm(outputs.flatten(1), 2).item()


def windows(choose):
    kernel = choose((1, 2, 3, 4, 5))
    return kernel, choose((1, 2, 3, 4, 5, 6)), choose(range(kernel // 2 + 1))


@pytest.mark.parametrize("seed", range(40))
def test_means_over_windows_are_bounded_for_images_of_every_size(seed):
    """By the norm, or by 9 % more where a window at a border has a divisor of its own."""
    choose = random.Random(seed).choice
    kernel, stride, padding = windows(choose)
    layer = nn.AvgPool1d(kernel, stride, padding, choose((False, True)), choose((False, True)))
    bound = operator_norm(layer)
    largest = max(norm_at(layer, n) for n in [*range(1, 3 * kernel + stride + 3), *range(64, 70)])
    assert largest <= bound
    assert bound < 1.09 * largest
    if not layer.ceil_mode and layer.count_include_pad:
        assert bound == pytest.approx(norm_at(layer, 400), rel=1e-2)


@pytest.mark.parametrize("seed", range(20))
def test_means_along_two_axes_multiply(seed):
    choose = random.Random(seed).choice
    kernel, stride, padding = zip(windows(choose), windows(choose), strict=True)
    divisor = choose((None, None, 1, 3, -5))
    layer = nn.AvgPool2d(kernel, stride, padding, choose((False, True)), choose((False, True)), divisor)
    bound = operator_norm(layer)
    largest = max(norm_at(layer, h, w) for h in range(3, 12) for w in range(3, 12))
    assert largest <= bound
    assert bound < 1.3 * largest


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (nn.AvgPool1d(2), 0.5**0.5),
        (nn.AvgPool2d(2), 0.5),
        (nn.AvgPool2d((2, 3), divisor_override=1), 6**0.5),
        (nn.AvgPool3d(2), 0.5**1.5),
        (nn.AvgPool2d(3, 1, 1), 1.0),
        (nn.AvgPool2d(4, 2), 0.5),
        (nn.AvgPool1d(3, 3, ceil_mode=True), 1.0),  # whose last window may hold one number
        (nn.MaxPool1d(3), 1.0),
        (nn.MaxPool2d(2), 1.0),
        (nn.MaxPool2d(3, 2, 1), 2.0),
        (nn.MaxPool3d(2, 1), 8**0.5),
        (nn.MaxPool1d(3, 2, dilation=2), 3**0.5),
        (nn.AdaptiveAvgPool1d(1), 1.0),
        (nn.AdaptiveAvgPool3d((1, None, 1)), 1.0),
    ],
    ids=repr,
)
def test_norms_that_are_known(layer, norm):
    assert operator_norm(layer) == pytest.approx(norm, rel=1e-8)


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_numbers_of_windows_move_no_further_than_the_bound_which_a_spike_attains(seed):
    choose = random.Random(seed).choice
    kernel, stride, padding = zip(windows(choose), windows(choose), strict=True)
    dilation = choose((1, 2, 3)), choose((1, 2))
    layer = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=choose((False, True)))
    bound = operator_norm(layer)
    x = torch.randn(200, 1, 19, 21, dtype=torch.float64)
    change = torch.randn_like(x) * torch.rand(200, 1, 19, 21) ** 8
    lengths = (layer(x + change) - layer(x)).flatten(1).norm(dim=1)
    assert (lengths <= bound * change.flatten(1).norm(dim=1)).all()
    assert norm_of_spikes(layer, 24, 25) == pytest.approx(bound)


def norm_of_spikes(layer, *size):
    pixels = torch.Size(size).numel()
    return layer(torch.eye(pixels).view(pixels, 1, *size)).flatten(1).norm(dim=1).max().item()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 4, 1),
        nn.Conv2d(4, 6, 1, stride=2, groups=2),
        nn.Conv2d(3, 2, 1, padding=1, bias=False),
        nn.Conv3d(2, 2, 1),
        projunn.constrain(nn.Conv2d(4, 4, 1, groups=2)),
        projunn.constrain(nn.Conv2d(3, 5, 1, padding="same", padding_mode="circular")),
    ],
    ids=repr,
)
def test_a_filter_of_one_pixel_has_the_norm_of_its_matrix(layer):
    size = (4,) * len(layer.kernel_size)
    found = torch.func.jacrev(layer)(torch.zeros(1, layer.in_channels, *size))
    wanted = torch.linalg.matrix_norm(found.double().view(-1, layer.in_channels * 4 ** len(size)), 2)
    assert operator_norm(layer) == pytest.approx(wanted.item(), rel=1e-5)
    if projunn.unitary_parameters(layer):
        assert operator_norm(layer) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 4),
        projunn.nn.UnitaryLinear(3, 4),
        projunn.nn.BlockUnitaryLinear(1, 3),
        nn.Conv1d(10_000, 4, 1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_rounding_of_a_bias_counts_at_each_position(layer):
    """Ten thousand rows of three features, each of which gets a large bias."""
    layer.bias.copy_(torch.empty_like(layer.bias).uniform_(2e4, 3e4))
    x = torch.randn(2, 10_000, 3)
    (found, error) = _logits([(layer, bound_of(layer))], x, torch.zeros(1))
    exact = layer.double()(x.double())
    rounded = (found - exact).flatten(1).norm(dim=1)
    assert (rounded < error[:, 0]).all()
    assert (rounded > 1e-3 * error[:, 0]).all()


@pytest.mark.parametrize("pixels", [1, 5, 40, 300, 100_000])
def test_the_mean_of_all_pixels_rounds_by_little_of_their_norm(pixels):
    layer, x = nn.AdaptiveAvgPool1d(1), torch.rand(2, 3, pixels)
    found, error = _logits([(layer, bound_of(layer))], x, torch.zeros(1))
    rounded = (found - layer(x.double())).flatten(1).norm(dim=1)
    assert (rounded <= error[:, 0]).all()
    assert (error[:, 0] < 1e-6 * x.flatten(1).norm(dim=1)).all()


def test_leaky_relu_rounds_its_slope_and_the_product():
    layer = nn.LeakyReLU(1 + 2**-23 + 0.99 * 2**-24)
    x = -1 - torch.rand(100_000)
    off = (layer(x).double() - x.double() * layer.negative_slope).norm() / x.double().norm()
    assert 2**-24 < off < bound_of(layer).rounding * 2**-24
