"""The spectral product against the bin-by-bin one."""

import pytest
import torch

from projunn.kernels import frequencies, spectral_gradient, spectral_product
from projunn.kernels.spectral import spectral_product_reference

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
    expected = spectral_product_reference(x, w, own, list(size))
    torch.testing.assert_close(torch.view_as_complex(result), expected)
    back = spectral_product(result, weight, own, list(size), True)
    turned = None if own is None else own.mT
    expected = spectral_product_reference(expected, w.mH, turned, list(size))
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
def test_opcheck(size, real):
    spectrum, weight, own = draw(size, real)
    for adjoint in (False, True):
        x = spectral_product(spectrum, weight, own, list(size), False) if adjoint else spectrum
        torch.library.opcheck(spectral_product, (x, weight, own, list(size), adjoint))
    y = spectral_product(spectrum, weight, own, list(size), False)
    torch.library.opcheck(spectral_gradient, (y, spectrum, list(size), real, 0.5))
