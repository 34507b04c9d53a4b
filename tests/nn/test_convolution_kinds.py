"""Convolutions with groups, dilations, strides that leave a rest, and transposed: all of them exact."""

import pytest
import torch
from torch import nn

import projunn
from projunn.nn import (
    LocalUnitaryConv2d,
    UnitaryConv1d,
    UnitaryConv2d,
    UnitaryConv3d,
    UnitaryConvTranspose1d,
    UnitaryConvTranspose2d,
    UnitaryConvTranspose3d,
)
from projunn.optim import SGD, RMSprop
from tests.convolutions import by_filter
from tests.dense import defect

KINDS = {1: UnitaryConv1d, 2: UnitaryConv2d, 3: UnitaryConv3d}
TRANSPOSED = {1: UnitaryConvTranspose1d, 2: UnitaryConvTranspose2d, 3: UnitaryConvTranspose3d}
OPTIONS = [
    ((7,), {"stride": 2}),
    ((5, 4), {"stride": (2, 3), "groups": 2}),
    ((6,), {"dilation": 3}),
    ((6, 4), {"dilation": (3, 2), "groups": 2}),
    ((4, 3), {"groups": 4}),
    ((3, 2, 3), {"stride": 2}),
    ((2, 2, 4), {"dilation": (1, 2, 2)}),
    ((2,), {"groups": 2}),
]
every_option = pytest.mark.parametrize(("size", "options"), OPTIONS)
both_kinds = pytest.mark.parametrize("kinds", [KINDS, TRANSPOSED], ids=["plain", "transposed"])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])


def make(kinds, channels, size, dtype=torch.float64, **options):
    """A layer whose filter fills the image, with a bias."""
    layer = kinds[len(size)](*channels, size, dtype=dtype, **options)
    for parameter in projunn.unitary_parameters(layer):
        projunn.init.haar_(parameter)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


@every_option
@both_kinds
@both_dtypes
def test_is_the_convolution_with_its_filter(kinds, dtype, size, options):
    for channels in ((4, 4), (4, 8), (8, 4)):
        layer = make(kinds, channels, size, dtype, **options)
        x = torch.randn(2, channels[0], *size, dtype=dtype)
        y = layer(x)
        assert y.shape == (2, channels[1], *layer.output_size)
        torch.testing.assert_close(y, by_filter(layer, x))
        torch.testing.assert_close(layer(x[0]), y[0])


@every_option
@both_kinds
@both_dtypes
def test_gradients_are_those_of_the_convolution_with_its_filter(kinds, dtype, size, options):
    layer = make(kinds, (4, 8), size, dtype, **options)
    x = torch.randn(2, 4, *size, dtype=dtype, requires_grad=True)
    target = torch.randn(2, 8, *layer.output_size, dtype=dtype)
    inputs = [x, *(p for p in layer.parameters() if p.numel())]
    found, expected = (
        torch.autograd.grad((y - target).abs().square().sum(), inputs)
        for y in (layer(x), by_filter(layer, x))
    )
    torch.testing.assert_close(found, expected)


@every_option
@both_kinds
@both_dtypes
def test_norms_are_kept(kinds, dtype, size, options):
    layer = make(
        kinds, (2, 16) if options.get("groups") == 2 else (4, 32), size, dtype, bias=False, **options
    )
    x = torch.randn(2, layer.in_channels, *size, dtype=dtype)
    torch.testing.assert_close(layer(x).norm(), x.norm())
    fewer = make(kinds, (8, 4), size, dtype, bias=False, **options)
    x = torch.randn(2, 8, *size, dtype=dtype)
    assert fewer(x).norm() <= x.norm() * (1 + 1e-12)


@every_option
@both_kinds
@pytest.mark.parametrize("sketch_rank", [None, 2])
def test_norms_are_kept_after_training(kinds, size, options, sketch_rank):
    layer = make(kinds, (4, 32), size, torch.float32, bias=False, sketch_rank=sketch_rank, **options)
    optimizer = (RMSprop if sketch_rank is None else SGD)(layer.parameters(), lr=1e-2, unitary_lr=0.05)
    source = torch.Generator().manual_seed(1)
    x = torch.randn(4, 4, *size, generator=source)
    target = torch.randn(layer(x).shape, generator=source)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    sizes = layer(x).flatten(1).double().norm(dim=1) / x.flatten(1).double().norm(dim=1)
    assert (sizes - 1).abs().max() < 1e-5
    assert defect(projunn.unitary_parameters(layer)[-1].detach()) < 1e-5


@every_option
@both_kinds
@both_dtypes
def test_plain_modules_compute_the_same(kinds, dtype, size, options):
    layer = make(kinds, (4, 8), size, dtype, **options).eval()
    plain = layer.to_plain()
    assert not plain.training
    assert {type(m).__module__.split(".")[0] for m in plain.modules()} == {"torch"}
    assert not projunn.unitary_parameters(plain)
    x = torch.randn(2, 4, *size, dtype=dtype)
    torch.testing.assert_close(plain(x), layer(x))


@both_kinds
@both_dtypes
@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {}])
def test_the_adjoint_is_the_adjoint(kinds, dtype, options):
    layer = make(kinds, (4, 6), (4, 6), dtype, bias=False, **options)
    adjoint = layer.adjoint()
    assert type(adjoint) is (TRANSPOSED if kinds is KINDS else KINDS)[2]
    x = torch.randn(2, 4, 4, 6, dtype=dtype)
    y = torch.randn(2, 6, *layer.output_size, dtype=dtype)
    one, other = (
        torch.vdot(y.flatten(), layer(x).flatten()),
        torch.vdot(adjoint(y).flatten(), x.flatten()),
    )
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(adjoint.adjoint()(x), layer(x))


def test_the_adjoint_undoes_a_square_convolution():
    layer = make(KINDS, (2, 8), (4, 6), bias=False, stride=2)
    x = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(layer.adjoint()(layer(x)), x)


@every_option
@both_kinds
def test_resized_to_the_same_size_it_computes_the_same(kinds, size, options):
    layer = make(kinds, (4, 8), size, **options)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(layer.resized(size)(x), layer(x))
    larger = layer.resized([2 * s for s in size])
    assert larger.grid_size > layer.grid_size
    for name in ("groups", "dilation", "stride"):
        assert getattr(larger, name) == getattr(layer, name)
    found = [projunn.unitarity_defect(p) for p in projunn.unitary_parameters(larger)]
    assert torch.cat([d.flatten() for d in found]).max() < 1e-12


@both_kinds
def test_energy_and_gradients_of_a_window_with_groups(kinds):
    layer = make(kinds, (4, 6), (4, 5), groups=2, bias=False)
    taps = layer.spatial_filter()
    inside = taps[..., :1, :1].square().sum()
    torch.testing.assert_close(layer.energy_outside(1), taps.square().sum() - inside)
    layer(torch.randn(2, 4, 4, 5, dtype=torch.float64)).square().sum().backward()
    layer.project_gradient_(1)
    # A filter of one tap has the same matrix at every frequency.
    by_group = layer.own_weight.grad.unflatten(0, (-1, 2))
    torch.testing.assert_close(by_group, by_group[:1].expand_as(by_group))


def test_a_depthwise_layer_has_as_many_parameters_as_its_filter():
    layer = UnitaryConv2d(8, 8, (5, 4), groups=8)
    assert sum(p.numel() for p in projunn.unitary_parameters(layer)) == 8 * 20
    assert layer.spatial_filter().shape == (8, 1, 5, 4)


def test_groups_start_apart():
    weight = UnitaryConv2d(8, 8, 4, groups=2).spatial_filter()[..., 0, 0]
    assert (weight[:4] - weight[4:]).abs().max() > 0.1


def test_a_certificate_bounds_each_group_by_itself():
    layer = make(KINDS, (4, 4), (4, 5), groups=2)
    assert projunn.lipschitz_bound(layer) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [(KINDS, torch.float32), (TRANSPOSED, torch.complex64)],
    ids=["plain", "transposed"],
)
def test_compiles_to_one_graph(kinds, dtype):
    layer = make(kinds, (4, 4), (4, 6), dtype, groups=2, dilation=2)
    x = torch.randn(2, 4, 4, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_repr_names_what_was_chosen():
    layer = UnitaryConvTranspose2d(4, 2, 4, groups=2, dilation=(1, 2))
    assert repr(layer) == (
        "UnitaryConvTranspose2d(4, 2, spatial_size=(4, 4), dilation=(1, 2), groups=2, bias=True)"
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UnitaryConv2d(4, 3, 4, groups=2), "groups: got 2, wanted a divisor of in_channels 4"),
        (lambda: UnitaryConv2d(4, 4, 4, groups=0), "groups: got 0"),
        (lambda: UnitaryConv2d(4, 4, (4, 5), dilation=2), r"dilation: got \(2, 2\), wanted divisors"),
        (lambda: UnitaryConv2d(4, 4, 4, 2, dilation=2), r"dilation: got \(2, 2\) with stride"),
        (lambda: UnitaryConv1d(1, 2, 5, 2).adjoint(), r"stride: got \(2,\), wanted divisors"),
        (lambda: UnitaryConv1d(1, 2, 6, dilation=3).energy_outside(3), r"window: got \(3,\)"),
    ],
)
def test_errors_name_the_argument(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_kernel_in_the_place_of_the_size_of_the_image_is_explained(axes):
    layer = getattr(projunn.nn, f"UnitaryConv{axes}d")(3, 16, 3)
    with pytest.raises(ValueError, match="the size of the image") as refused:
        layer(torch.randn(2, 3, *axes * [32]))
    said = str(refused.value)
    assert f"wanted (batch, {', '.join((axes + 1) * ['3'])}) or without" in said
    assert f"for a kernel of {' x '.join(axes * ['3'])} take LocalUnitaryConv{axes}d" in said
    larger = layer.resized(16)  # no kernel has this size
    with pytest.raises(ValueError, match=r"layer\.resized") as refused:
        larger(torch.randn(2, 3, *axes * [32]))
    assert "kernel" not in str(refused.value)


@pytest.mark.parametrize("padding", [0, 1, "same", (1, 1)])
def test_there_is_no_padding_to_choose(padding):
    with pytest.raises(TypeError, match=r"padding: got .*, wanted None, the only choice"):
        UnitaryConv2d(2, 2, 4, padding=padding)
    assert UnitaryConv2d(2, 2, 4, padding=None).spatial_size == (4, 4)
    for kind in (UnitaryConv2d, UnitaryConvTranspose2d, LocalUnitaryConv2d):
        with pytest.raises(TypeError, match=r"bias: got .*, wanted True or False; a padding"):
            kind(2, 2, 3, 1, padding)  # where nn.Conv2d has its padding


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_what_is_fixed_in_a_layer_is_so_in_those_that_are_made_of_it(dtype):
    layer = UnitaryConv2d(2, 3, 5, dtype=dtype).requires_grad_(False)
    layer.bias.requires_grad_(True)
    assert [name for name, p in layer.resized(6).named_parameters() if p.requires_grad] == ["bias"]
    assert not any(p.requires_grad for p in layer.adjoint().parameters())
    layer.requires_grad_(True)
    assert all(p.requires_grad for p in [*layer.resized(6).parameters(), *layer.adjoint().parameters()])
