"""The products at every frequency: batched complex GEMMs on W as it is stored.

    conj(W x) = conj(x) W^H        conj(W^H y) = conj(y) W        G = sum_b y conj(x)^T

A row is an image.  Spectra are conjugated (`projunn_kernels.fourier_transform`), so that the only
conjugates in these formulas are of transposed operands, which BLAS takes as they are: cuBLAS reads W
and the spectra, and nothing is copied.  MKL's batched product knows no conjugates, and PyTorch copies
what is conjugated; so on a CPU it is the smaller operand.  Groups of channels are more matrices: those
of a frequency lie side by side.
"""

import torch
from torch import Tensor

Spectrum = tuple[Tensor, Tensor]  # paired (P, batch, channels, 2) and own (R, batch, channels)


def product(spectrum: Spectrum, weight: Tensor, own_weight: Tensor | None) -> Spectrum:
    """conj(W x) of conj(x)."""
    paired, own = spectrum
    x, w = torch.view_as_complex(paired), torch.view_as_complex(weight.contiguous())
    batch, (m, n) = x.shape[1], w.shape[1:]
    if x.is_cpu and batch * (m + n) < 2 * m * n:
        y = torch.bmm(x.conj_physical(), w.mT).conj_physical()
    else:
        y = torch.bmm(x, w.mH)
    if own_weight is None:
        return torch.view_as_real(y), own.new_empty(0, batch, m)
    return torch.view_as_real(y), torch.bmm(own, own_weight.mT)


def adjoint(spectrum: Spectrum, weight: Tensor, own_weight: Tensor | None) -> Spectrum:
    """conj(W^H y) of conj(y)."""
    paired, own = spectrum
    w = torch.view_as_complex(weight.contiguous())
    x = torch.view_as_real(torch.bmm(torch.view_as_complex(paired), w))
    if own_weight is None:
        return x, own.new_empty(0, own.shape[1], w.shape[2])
    return x, torch.bmm(own, own_weight)


def gradient(grad: Spectrum, spectrum: Spectrum) -> Spectrum:
    """sum_b y conj(x)^T of conj(y) and conj(x): (P, m, n, 2), and (R, m, n) for the own bins."""
    (y, y_own), (x, x_own) = grad, spectrum
    adjoint = torch.view_as_complex(y)
    adjoint = adjoint.conj_physical().mT if y.is_cpu else adjoint.mH
    paired = torch.bmm(adjoint, torch.view_as_complex(x))
    return torch.view_as_real(paired), torch.bmm(y_own.mT, x_own)


def split(spectrum: Spectrum, groups: int) -> Spectrum:
    """Spectra of all channels as those of groups: (P groups, batch, n, 2) and (R groups, batch, n)."""
    if groups == 1:
        return spectrum
    paired, own = (s.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1) for s in spectrum)
    return paired, own


def merge(spectrum: Spectrum, groups: int) -> Spectrum:
    """The inverse of `split`."""
    if groups == 1:
        return spectrum
    paired, own = (s.unflatten(0, (-1, groups)).transpose(1, 2).flatten(2, 3) for s in spectrum)
    return paired, own
