"""The definitions, dense and in float64: what the library is checked against."""

import scipy.linalg
import torch

RETRACTIONS = ("exp", "polar", "cayley")


def precise(tensor):
    """In float64 and on the CPU, wherever it was computed."""
    return tensor.to("cpu", torch.complex128 if tensor.is_complex() else torch.float64)


def polar(matrix):
    u, _, vh = torch.linalg.svd(matrix)
    return u @ vh


def unitary_factor(e, retraction):
    """exp(A), polar(I + E) or Cayley(A) with A = (E - E^H)/2, for square matrices E."""
    identity = torch.eye(e.shape[-1], dtype=e.dtype).expand_as(e)
    a = (e - e.mH) / 2
    if retraction == "polar":
        return polar(identity + e)
    if retraction == "cayley":
        return torch.linalg.solve(identity - a / 2, identity + a / 2)
    return torch.from_numpy(scipy.linalg.expm(a.resolve_conj().numpy())) if e.numel() else identity


def retracted(weight, left, right, retraction):
    """W times the unitary factor of the step; tall matrices by the mirror image."""
    w, x, y = precise(weight), precise(left), precise(right)
    if w.shape[-2] > w.shape[-1]:
        return retracted(w.mH, y, x, retraction).mH
    return w @ unitary_factor(w.mH @ x @ y.mH, retraction)


def defect(matrix):
    """‖W^H W - I‖_F / sqrt(n) over the smaller side, in float64; the largest of a batch."""
    w = precise(matrix)
    w = w.mH if w.shape[-2] < w.shape[-1] else w
    error = w.mH @ w - torch.eye(w.shape[-1], dtype=w.dtype)
    return (torch.linalg.matrix_norm(error) / w.shape[-1] ** 0.5).max().item() if w.numel() else 0.0


def roundoff(dtype):
    return torch.finfo(dtype).eps
