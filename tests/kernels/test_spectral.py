"""The spectral product against the bin-by-bin one."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import projunn
from projunn_kernels import fourier_convolution, frequencies, spectral_gradient, spectral_product
from projunn_kernels.convolution import reference
from projunn_kernels.convolution.fourier import fourier_convolution_backward

CASES = [((8, 8), True), ((5, 6), True), ((7,), True), ((2, 3, 4), True), ((4, 3), False)]


def draw(size, real, batch=3, m=4, n=5, dtype=torch.float64):
    grid = frequencies(size, real)
    dims = tuple(range(2, 2 + len(size)))
    signal = torch.randn(batch, n, *size, dtype=dtype if real else dtype.to_complex())
    spectrum = (torch.fft.rfftn if real else torch.fft.fftn)(signal, dim=dims)
    weight = torch.randn(grid.paired, m, n, 2, dtype=dtype)
    own = torch.randn(len(grid.own), m, n, dtype=dtype) if real else None
    return torch.view_as_real(spectrum).contiguous(), weight, own


@pytest.mark.parametrize(("size", "real"), CASES)
def test_product_and_adjoint(size, real):
    spectrum, weight, own = draw(size, real)
    x, w = map(torch.view_as_complex, (spectrum, weight))
    result = spectral_product(spectrum, weight, own, list(size), False)
    expected = reference.spectral_product(x, w, own, list(size))
    torch.testing.assert_close(torch.view_as_complex(result), expected)
    back = spectral_product(result, weight, own, list(size), True)
    turned = None if own is None else own.mT
    expected = reference.spectral_product(expected, w.mH, turned, list(size))
    torch.testing.assert_close(torch.view_as_complex(back), expected)


@pytest.mark.parametrize(("size", "real"), CASES)
def test_strided_spectra(size, real):
    spectrum, weight, own = draw(size, real)
    strided = spectrum.transpose(0, 1).contiguous().transpose(0, 1)
    args = (weight, own, list(size))
    expected = spectral_product(spectrum, *args, False)
    torch.testing.assert_close(spectral_product(strided, *args, False), expected)
    for ours, theirs in zip(
        spectral_gradient(expected, strided, list(size), real, 1.0),
        spectral_gradient(expected, spectrum, list(size), real, 1.0),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("size", "real"), CASES)
@pytest.mark.parametrize("adjoint", [False, True])
def test_derivatives(size, real, adjoint):
    """Of any order, for spectra that are no real signal's too: what is not read has none."""
    tensors = draw(size, real, batch=2, m=2, n=2)
    tensors = [None if t is None else t.requires_grad_() for t in tensors]

    def multiply(x, w, own):
        return spectral_product(x, w, own, list(size), adjoint)

    def differentiate(x, w, own):
        return spectral_gradient(multiply(x, w, own), x, list(size), real, 0.7)

    for function in (multiply, differentiate):
        assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize(("size", "real"), CASES)
def test_opcheck(size, real):
    spectrum, weight, own = draw(size, real)
    for adjoint in (False, True):
        x = spectral_product(spectrum, weight, own, list(size), False) if adjoint else spectrum
        torch.library.opcheck(
            torch.ops.projunn.spectral_product.default, (x, weight, own, list(size), adjoint)
        )
    y = spectral_product(spectrum, weight, own, list(size), False)
    torch.library.opcheck(
        torch.ops.projunn.spectral_gradient.default, (y, spectrum, list(size), real, 0.5)
    )


# -- the Triton kernels ------------------------------------------------------------------------------

# Ragged tiles of frequencies, channels and images; no frequency off the planes; 8 and 4 own ones.
SHAPES = [
    ((8, 8), True, 3, 4, 5),
    ((5, 6), True, 2, 17, 3),
    ((7, 7), True, 33, 2, 18),
    ((13,), True, 1, 1, 1),
    ((2, 2), True, 5, 3, 3),
    ((2, 4, 4), True, 2, 3, 2),
    ((4, 3), False, 3, 20, 9),
    ((9,), False, 35, 5, 6),
]


def moved(tensors, device):
    return [None if t is None else t.to(device) for t in tensors]


def errors(ours, plain, exact):
    """Of ours and of PyTorch in float32, relative to the largest number."""
    scale = exact.abs().max().clamp_min(1e-30)
    return [((t.cpu() - exact).abs().max() / scale).item() for t in (ours, plain)]


@pytest.mark.parametrize(("size", "real", "batch", "m", "n"), SHAPES)
def test_kernels_against_float64(kernels, size, real, batch, m, n):
    tensors = draw(size, real, batch, m, n)
    single = [None if t is None else t.float() for t in tensors]
    exact = [None if t is None else t.double() for t in single]
    cotangent = draw(size, real, batch, n, m, torch.float32)[0]

    def everything(spectrum, weight, own, cotangent):
        yield spectral_product(spectrum, weight, own, list(size), False)
        yield spectral_product(cotangent, weight, own, list(size), True)
        yield from spectral_gradient(cotangent, spectrum, list(size), real, 0.5)

    with kernels.backend():
        ours = list(everything(*moved([*single, cotangent], kernels.device)))
    with projunn.backend("torch"):
        plain = list(everything(*single, cotangent))
        right = list(everything(*exact, cotangent.double()))
    for a, b, c in zip(ours, plain, right, strict=True):
        assert a.shape == b.shape
        assert a.dtype == torch.float32
        if c.numel():
            error, usual = errors(a, b, c)
            assert error <= 4 * usual + 1e-6


def test_kernels_on_strided_and_empty_spectra(kernels):
    tensors = draw((4, 5), True, dtype=torch.float32)
    with kernels.backend():
        check_strided_and_empty(*moved(tensors, kernels.device))


def check_strided_and_empty(spectrum, weight, own):
    size = [4, 5]
    expected = spectral_product(spectrum, weight, own, size, False)
    strided = spectrum.transpose(0, 1).contiguous().transpose(0, 1)
    turned = weight.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(spectral_product(strided, turned, own, size, False), expected)
    gradients = spectral_gradient(expected, spectrum, size, True, 1.0)
    for a, b in zip(spectral_gradient(expected, strided, size, True, 1.0), gradients, strict=True):
        torch.testing.assert_close(a, b)
    same = spectrum[:1].expand(3, -1, -1, -1, -1)
    torch.testing.assert_close(spectral_product(same, weight, own, size, False)[2], expected[0])
    assert spectral_product(spectrum[:0], weight, own, size, False).shape == (0, 4, 4, 3, 2)
    paired, selves = spectral_gradient(expected[:0], spectrum[:0], size, True, 1.0)
    assert not paired.any()
    assert not selves.any()
    assert paired.shape == weight.shape
    assert selves.shape == own.shape


@pytest.mark.parametrize("real", [True, False])
def test_every_tile_gives_the_same(kernels, real):
    from projunn_kernels.configs import choice as tuning
    from projunn_kernels.configs.closed_form import candidates
    from projunn_kernels.configs.problem import Device, Problem

    tensors = draw((3, 4), real, 35, 18, 19, torch.float32)  # more bins than a program takes
    spectrum, weight, own = moved(tensors, kernels.device)

    def everything():
        product = spectral_product(spectrum, weight, own, [3, 4], False)
        return product, *spectral_gradient(expected, spectrum, [3, 4], real, 1.0)

    problem = Problem("spectral_gradient", not real, 35, 18, 19, 9)
    with kernels.backend():
        expected = spectral_product(spectrum, weight, own, [3, 4], False)
        usual = everything()
        for config in candidates(problem, Device()):
            with tuning.using({"spectral_product": config, "spectral_gradient": config}):
                for ours, theirs in zip(everything(), usual, strict=True):
                    scale = theirs.abs().amax().item() if theirs.numel() else 1.0
                    torch.testing.assert_close(ours, theirs, atol=3e-6 * scale, rtol=0)


def test_opcheck_of_the_kernels(kernels):
    tensors = draw((4, 5), True, dtype=torch.float32)
    spectrum, weight, own = moved(tensors, kernels.device)
    with kernels.backend():
        torch.library.opcheck(
            torch.ops.projunn.spectral_product.default, (spectrum, weight, own, [4, 5], False)
        )
        y = spectral_product(spectrum, weight, own, [4, 5], False)
        torch.library.opcheck(
            torch.ops.projunn.spectral_gradient.default, (y, spectrum, [4, 5], True, 0.5)
        )


@pytest.mark.parametrize(("size", "dtype"), [((6, 5), torch.float32), ((4, 4), torch.complex64)])
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


def test_fake_tensors_trace_the_gpu_path():
    """Without autograd, which wants a real GPU's thread: the operators that it would call."""
    size = [8, 8]
    with FakeTensorMode():
        tensors = x, weight, own, bias = [
            torch.empty(shape, device="cuda")
            for shape in ((4, 12, 8, 8), (30, 8, 12, 2), (4, 8, 12), (8,))
        ]
        y, spectrum = fourier_convolution(x, weight, own, bias, size)
        assert (y.shape, y.device.type) == ((4, 8, 8, 8), "cuda")
        assert spectrum.shape == (4, 12, 8, 5, 2)
        wanted = [True, True, True]
        grads = fourier_convolution_backward(y, spectrum, weight, own, size, wanted)
        for grad, tensor in zip(grads, tensors, strict=True):
            assert (grad.shape, grad.device) == (tensor.shape, tensor.device)
        product = spectral_product(spectrum, weight, own, size, False)
        assert (product.shape, product.device.type) == ((4, 8, 8, 5, 2), "cuda")
        for grad, tensor in zip(
            spectral_gradient(product, spectrum, size, True, 1.0), (weight, own), strict=True
        ):
            assert (grad.shape, grad.device) == (tensor.shape, tensor.device)


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
