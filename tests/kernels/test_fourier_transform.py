"""The transforms to spectra frequency by frequency, and the products there, against their formulas."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import projunn
from projunn_kernels import fourier_convolution, fourier_inverse, fourier_transform, frequencies
from projunn_kernels.configs import choice
from projunn_kernels.configs.closed_form import candidates, closed_form
from projunn_kernels.configs.problem import Config, Device, Problem, device_of, power_of_two
from projunn_kernels.convolution import eager, fourier_convolution_backward, plain, products, reference
from projunn_kernels.convolution.tables import few_points, points_and_pairs
from projunn_kernels.convolution.tiles import FOURIER_TRANSFORM
from projunn_kernels.keeping import Recent

SIZES = [(1,), (2,), (6,), (5,), (4, 4), (3, 4), (1, 4), (4, 1), (2, 2), (7, 8), (30, 33)]
CASES = [(size, True) for size in (*SIZES, (2, 3, 2), (4, 2, 3), (3, 3, 5))]
CASES += [((5,), False), ((4, 3), False), ((2, 3, 2), False)]
FEW = [((4, 4), True), ((3, 4), True), ((5,), True), ((2, 3, 2), True), ((3, 2), False)]


def signal(size, real, batch=2, channels=3, dtype=torch.float64):
    return torch.randn(batch, channels, *size, *(() if real else (2,)), dtype=dtype)


def matrices(size, real, m=3, n=2, dtype=torch.float64):
    grid = frequencies(size, real)
    own = torch.randn(len(grid.own), m, n, dtype=dtype) if real else None
    return torch.randn(grid.paired, m, n, 2, dtype=dtype), own


def both_ways(monkeypatch):
    """By one product, two, and the FFT, all planes at once and one by one."""
    monkeypatch.setattr(eager, "AT_A_TIME", 1)
    for longest, few in ((0, 0), (64, 0), (64, 64)):
        for planes in (1, 100):
            limit_products(monkeypatch, longest, few)
            monkeypatch.setattr(eager, "LEAST_PLANES", planes)
            yield


def limit_products(monkeypatch, longest, few):
    """The longest line and side of products, and the most points of one product."""
    monkeypatch.setattr(eager, "LONGEST_LINE", longest)
    monkeypatch.setattr(eager, "LONGEST_SIDE", longest)
    monkeypatch.setattr(eager, "FEW_POINTS", few)


@pytest.mark.parametrize(("size", "real"), CASES)
def test_spectra_are_those_of_the_formula(monkeypatch, size, real):
    x = signal(size, real)
    expected = reference.spectrum(x, list(size), real)
    for _ in both_ways(monkeypatch):
        torch.testing.assert_close(fourier_transform(x, list(size), real), expected)
    torch.testing.assert_close(plain.transform(x, list(size), real), expected)


@pytest.mark.parametrize(("size", "real"), CASES)
def test_the_inverse_is_the_inverse_and_the_transpose(monkeypatch, size, real):
    x, bias = signal(size, real), torch.randn(3, *(() if real else (2,)), dtype=torch.float64)
    spectrum = reference.spectrum(x, list(size), real)
    other = [torch.randn_like(part) for part in spectrum]
    shifted = x + bias.view(-1, *(1 for _ in size), *bias.shape[1:])
    for _ in both_ways(monkeypatch):
        torch.testing.assert_close(fourier_inverse(*spectrum, bias, list(size), real), shifted)
        back = fourier_inverse(*other, None, list(size), real)
        inner = sum((a * b).sum() for a, b in zip(spectrum, other, strict=True))
        torch.testing.assert_close((x * back).sum(), inner)
    torch.testing.assert_close(plain.inverse(*spectrum, bias, list(size), real), shifted)


@pytest.mark.parametrize(("size", "real"), CASES)
def test_a_spectrum_has_as_many_numbers_as_the_signal_and_its_norm(size, real):
    x = signal(size, real)
    paired, own = fourier_transform(x, list(size), real)
    assert paired.numel() + own.numel() == x.numel()
    torch.testing.assert_close(torch.cat([paired.flatten(), own.flatten()]).norm(), x.norm())


@pytest.mark.parametrize(("size", "real"), FEW)
@pytest.mark.parametrize("batch", [1, 40])  # MKL conjugates the spectra, or W
def test_products_are_those_of_the_matrices(size, real, batch):
    weight, own_weight = matrices(size, real, m=4, n=3)
    w, x, y = (torch.view_as_complex(t) for t in (weight, *spectra(size, real, batch)[::2]))
    grid = frequencies(size, real)
    x_own, y_own = spectra(size, real, batch)[1::2]
    for module in (products, plain):
        found = module.product((torch.view_as_real(x), x_own), weight, own_weight)
        expected = torch.einsum("kbn,kmn->kbm", x, w.conj()), None
        check(found, torch.view_as_real(expected[0]), x_own @ own_weight.mT if real else None)
        found = module.adjoint((torch.view_as_real(y), y_own), weight, own_weight)
        check(found, torch.view_as_real(y @ w), y_own @ own_weight if real else None)
        found = module.gradient((torch.view_as_real(y), y_own), (torch.view_as_real(x), x_own))
        expected = torch.einsum("kbm,kbn->kmn", y.conj(), x)
        assert found[1].shape == (len(grid.own), 4, 3)
        check(found, torch.view_as_real(expected), y_own.mT @ x_own if real else None)


def spectra(size, real, batch):
    """Paired and own bins of x with 3 channels, and of y with 4; the same in each call."""
    torch.manual_seed(3)
    x, y = (signal(size, real, batch, channels) for channels in (3, 4))
    return *fourier_transform(x, list(size), real), *fourier_transform(y, list(size), real)


def check(found, paired, own):
    torch.testing.assert_close(found[0], paired)
    if own is None:
        assert found[1].numel() == 0
    else:
        torch.testing.assert_close(found[1], own)


@pytest.mark.parametrize(("size", "real"), FEW)
def test_derivatives_and_opcheck(size, real):
    x = signal(size, real, channels=2).requires_grad_()
    bias = torch.randn(2, *(() if real else (2,)), dtype=torch.float64, requires_grad=True)
    spectrum = [s.detach().requires_grad_() for s in fourier_transform(x, list(size), real)]
    forth = lambda x: fourier_transform(x, list(size), real)  # noqa: E731
    back = lambda *s: fourier_inverse(*s, list(size), real)  # noqa: E731
    assert torch.autograd.gradcheck(forth, (x,))
    assert torch.autograd.gradcheck(back, (*spectrum, bias))
    nonlinear = lambda *s: back(*s).sin()  # noqa: E731
    assert torch.autograd.gradgradcheck(nonlinear, (*spectrum, bias), fast_mode=True)
    operators = torch.ops.projunn
    torch.library.opcheck(operators.fourier_transform.default, (x, list(size), real))
    torch.library.opcheck(operators.fourier_inverse.default, (*spectrum, bias, list(size), real))


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (16, 16), (14, 7), (8, 8), (64,), (60,)])
def test_errors_of_products_are_those_of_the_fft(monkeypatch, size):
    x = signal(size, True, batch=4, channels=8, dtype=torch.float32)
    exact = reference.spectrum(x.double(), list(size), True)[0]
    errors = []
    for longest, few in ((0, 0), (64, 0), (64, 64)):
        limit_products(monkeypatch, longest, few)
        errors.append((fourier_transform(x, list(size), True)[0] - exact).norm() / exact.norm())
    by_fft, *by_products = errors
    assert max(by_products) <= 4 * by_fft
    assert max(by_products) < 4e-7


# -- the Triton kernels ------------------------------------------------------------------------------

# Few points: ragged tiles of planes; no inner bins; lines.  Planes: even and odd sides of every padding,
# one and several programs, the last of them ragged.
SHAPES = [
    ((8, 8), 3, 5),
    ((5, 6), 2, 17),
    ((7, 7), 3, 11),
    ((13,), 1, 1),
    ((64,), 3, 7),
    ((2, 2), 5, 3),
    ((1, 9), 2, 3),
    ((9, 1), 2, 3),
    ((3, 21), 65, 1),
    ((40, 1), 2, 3),
    ((32, 30), 2, 5),
    ((17, 31), 3, 3),
    ((32, 32), 3, 3),
    ((31, 32), 1, 3),
    ((16, 16), 3, 11),
    ((15, 16), 1, 2),
    ((3, 32), 2, 9),
    ((32, 3), 1, 3),
    ((5, 13), 3, 11),
    ((64, 64), 1, 5),
    ((33, 63), 2, 1),
    ((48, 17), 3, 3),
    ((15, 40), 2, 5),
    ((64, 2), 1, 9),
]


def on(kernels, *tensors):
    return [t.to(kernels.device) for t in tensors]


def transformed(x, bias, size):
    """Both transforms and what they are given, in one list."""
    spectrum = fourier_transform(x, list(size), True)
    return [*spectrum, fourier_inverse(*spectrum, bias, list(size), True)]


@pytest.mark.parametrize(("size", "batch", "channels"), SHAPES)
def test_kernels_against_float64(kernels, launches, size, batch, channels):
    problem = Problem("fourier_transform", False, 1, *(1, *size)[-2:], batch * channels)
    whole = closed_form(problem, device_of(kernels.device)).columns == 1
    compare_with_float64(kernels, size, batch, channels)
    of_planes = "plane" if whole else "sliced"
    kind = "points" if math.prod(map(power_of_two, size)) <= 64 else of_planes
    assert [name for name, _ in launches] == [f"{kind}_transform", f"{kind}_inverse"]


# Even and odd sides, without inner bins, several programs, and sides that no slice is needed for.
@pytest.mark.parametrize(
    ("size", "batch", "channels", "config"),
    [
        ((64, 64), 1, 5, Config(2, 16, 8)),
        ((48, 40), 1, 3, Config(2, 8, 4)),
        ((33, 17), 2, 5, Config(4, 16, 8)),
        ((64, 3), 3, 3, Config(8, 8, 8)),
        ((49, 2), 1, 3, Config(8, 16, 8)),
        ((15, 9), 2, 3, Config(4, 16, 8)),
    ],
)
def test_slices_of_planes_against_float64(kernels, launches, size, batch, channels, config):
    with choice.using({"fourier_transform": config, "fourier_inverse": config}):
        compare_with_float64(kernels, size, batch, channels)
    assert [name for name, _ in launches] == ["sliced_transform", "sliced_inverse"]


def compare_with_float64(kernels, size, batch, channels):
    x = signal(size, True, batch, channels, torch.float32)
    bias = torch.randn(channels)
    ours = transformed(*on(kernels, x, bias), size)
    with projunn.backend("torch"):
        usual = transformed(x, bias, size)
        exact = transformed(x.double(), bias.double(), size)
    for a, b, c in zip(ours, usual, exact, strict=True):
        assert a.shape == b.shape
        assert a.dtype == torch.float32
        assert a.is_contiguous()
        if c.numel():
            error, theirs = ((t.cpu() - c).norm() / c.norm() for t in (a, b))
            assert error <= 4 * theirs + 3e-7


def test_tall_planes_are_sliced_where_products_read_registers():
    """On an A100, say, where tuning tries it for others too; a Hopper reads them from memory."""
    for capability in ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0", "gfx942"):
        registers = capability not in ("9.0", "10.0")
        for height, width in ((33, 64), (64, 16), (48, 3), (32, 64), (8, 8)):
            problem = Problem("fourier_inverse", False, 1, height, width, 4096)
            first, *others = candidates(problem, Device("a GPU", capability))
            assert (first.columns > 1) == (registers and height > 32)
            assert any(config.columns > 1 for config in others) == (registers and height > 8)
            assert all(config.columns > 1 for config in others if first.columns > 1)


def test_kernels_read_any_strides(kernels, launches):
    size = [6, 5]
    x = signal(size, True, 3, 4, torch.float32).to(kernels.device)
    expected = fourier_transform(x, size, True)
    last = x.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    torch.testing.assert_close(fourier_transform(last, size, True), expected)
    same = x[:1].expand(3, -1, -1, -1)
    paired, _ = fourier_transform(same, size, True)
    torch.testing.assert_close(paired[:, 2], expected[0][:, 0])
    assert fourier_transform(x[:0], size, True)[0].shape == (14, 0, 4, 2)
    assert len(launches) == 3


def test_what_the_kernels_do_not_take_runs_in_pytorch(kernels, launches):
    for size, real in (((3, 2, 4), True), ((65, 4), True), ((65,), True), ((4, 4), False)):
        x = signal(size, real, dtype=torch.float32).to(kernels.device)
        spectrum = fourier_transform(x, list(size), real)
        torch.testing.assert_close(fourier_inverse(*spectrum, None, list(size), real), x)
    assert not launches


def test_sizes_of_a_bucket_have_launches_of_one_kind():
    """A configuration and a self-check are for all of them."""
    found = {}
    for size in [(m, n) for m in range(1, 65) for n in range(1, 65)]:
        problem = Problem("fourier_transform", False, 1, *size, 4096)
        padded = points_and_pairs(size) if few_points(size) else tuple(map(power_of_two, size))
        small = FOURIER_TRANSFORM.small(problem, Config(8, 1, 4))
        found.setdefault(problem.bucket, set()).add((few_points(size), *padded))
        found[problem.bucket].add((few_points((small.m, small.n)), *padded))
    assert all(len(kinds) == 1 for kinds in found.values())


@pytest.mark.parametrize("size", [(6, 30), (9, 5), (40,)])
def test_every_tile_gives_the_same(kernels, size):
    x, bias = on(kernels, signal(size, True, 3, 7, torch.float32), torch.randn(7))
    problem = Problem("fourier_transform", False, 1, *(1, *size)[-2:], 21)
    tried = candidates(problem, Device())
    assert len(tried) > 3
    with kernels.backend():
        usual = transformed(x, bias, size)
        for config in tried:
            with choice.using({"fourier_transform": config, "fourier_inverse": config}):
                for ours, theirs in zip(transformed(x, bias, size), usual, strict=True):
                    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=0)


def test_opcheck_of_the_kernels(kernels):
    (x,) = on(kernels, signal((4, 5), True, dtype=torch.float32))
    with kernels.backend():
        torch.library.opcheck(torch.ops.projunn.fourier_transform.default, (x, [4, 5], True))
        spectrum = fourier_transform(x, [4, 5], True)
        arguments = (*spectrum, None, [4, 5], True)
        torch.library.opcheck(torch.ops.projunn.fourier_inverse.default, arguments)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [((6, 5), torch.float32), ((4, 40), torch.float32), ((4, 4), torch.complex64)],
)
def test_a_layer_trains_through_the_kernels(kernels, size, dtype):
    """Forward and backward of the layer, against the same layer in PyTorch operations."""
    layer = projunn.nn.UnitaryConv2d(3, 5, size, dtype=dtype)
    x = torch.randn(2, 3, *size, dtype=dtype)
    results = []
    for backend, device in (("torch", "cpu"), (kernels.name, kernels.device)):
        layer, own = layer.to(device), x.to(device).requires_grad_()
        with projunn.backend(backend):
            y = layer(own)
            grads = torch.autograd.grad(y.abs().square().sum(), [own, *layer.parameters()])
            results.append([t.cpu() for t in (y, *grads)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_kept_launch_is_for_a_bias_of_one_dtype(kernels, monkeypatch):
    """The binary reads what it was compiled for, whatever lies at the address."""
    launch = pytest.importorskip("projunn_kernels.convolution.launch")
    monkeypatch.setattr(launch, "_kept", Recent(9))
    biases = torch.randn(3), torch.randn(3, dtype=torch.float64), torch.randn(3)
    with kernels.backend():
        spectrum = fourier_transform(torch.randn(2, 3, 8, 8).to(kernels.device), [8, 8], True)
        for bias in biases:
            fourier_inverse(*spectrum, bias.to(kernels.device), [8, 8], True)
    assert len(launch._kept) == 3  # one of the transform


def test_fake_tensors_trace_the_gpu_path():
    """Without autograd, which wants a real GPU's thread: the operators that it would call."""
    size, wanted = [8, 8], [True, True, True]
    with FakeTensorMode():
        tensors = x, weight, own, bias = [
            torch.empty(shape, device="cuda")
            for shape in ((4, 12, 8, 8), (30, 8, 12, 2), (4, 8, 12), (8,))
        ]
        y, *spectrum = fourier_convolution(x, weight, own, bias, size)
        assert (y.shape, y.device.type) == ((4, 8, 8, 8), "cuda")
        assert [s.shape for s in spectrum] == [(30, 4, 12, 2), (4, 4, 12)]
        grads = fourier_convolution_backward(y, *spectrum, weight, own, size, wanted)
        for grad, tensor in zip(grads, tensors, strict=True):
            assert (grad.shape, grad.device) == (tensor.shape, tensor.device)
        assert fourier_inverse(*spectrum, None, size, True).shape == x.shape
        assert math.prod(fourier_convolution(x, weight, own, bias, size, False)[1].shape) == 0


def test_precision_is_pytorchs_setting(monkeypatch):
    pytest.importorskip("triton")
    from projunn_kernels.launching import dot_precision

    before = torch.get_float32_matmul_precision()
    try:
        for setting, wanted in (("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(setting)
            assert dot_precision(torch.float32) == wanted
            assert dot_precision(torch.bfloat16) == "ieee"
        monkeypatch.setattr(torch.version, "hip", "6.0")
        assert dot_precision(torch.float32) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)
