"""How the spectral products are tiled."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from projunn_kernels.configs.kernel import Case, Inputs, Kernel, matmul_precision
from projunn_kernels.configs.problem import Config, Device, Problem
from projunn_kernels.convolution import eager
from projunn_kernels.convolution.grid import frequencies

_IMAGES = 256  # that spectral products are tuned for


def _tiles(problem: Problem, device: Device) -> Config:
    return Config(16, 32, 8)  # channels x images or channels; a frequency a warp


def _candidates(problem: Problem, device: Device) -> list[Config]:
    """Larger tiles spill."""
    sizes = [(16, 32), (16, 16)] + [(32, 16)] * (problem.operation == "spectral_gradient")
    return [Config(rows, columns, warps) for rows, columns in sizes for warps in (8, 4)]


def _small(problem: Problem, config: Config) -> Problem:
    """A tile and a tail of channels and images; more frequencies than a program has warps."""
    p, m, n = problem, config.rows + 3, config.columns + 5
    return Problem(p.operation, p.pairs, config.columns + 1, m, n, config.warps + 3)


def _problem(name: str) -> Callable[..., Problem | None]:
    def problem(matrices: int, m: int, n: int, k: int, pairs: bool) -> Problem | None:
        return Problem(name, pairs, _IMAGES, m, n, matrices) if matrices > 1 else None

    return problem


def _standard(name: str) -> list[Problem]:
    """ResNet9 on images of 32 x 32."""
    layers = ((64, 544), (128, 144), (256, 40))
    return [Problem(name, False, _IMAGES, channels, channels, bins) for channels, bins in layers]


def _compiled(name: str) -> list[Problem]:
    """Layers of networks, and an odd one with the channels of a first layer."""
    sizes = ((256, 64, 64, 544), (256, 256, 256, 40), (25, 33, 3, 35))
    return [Problem(name, pairs, *size) for pairs in (False, True) for size in sizes]


def _line(problem: Problem) -> tuple[list[int], bool]:
    """A line of points with that many frequencies, and whether its signals are real.

    An even number of points, if they are real, so that there are two self-conjugate bins.
    """
    real = not problem.pairs
    return [max(1, 2 * (problem.matrices - 1)) if real else problem.matrices], real


def _product_case(problem: Problem, inputs: Inputs, *, adjoint: bool, precision: str) -> Case:
    p, (size, real) = problem, _line(problem)
    grid = frequencies(tuple(size), real)

    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.convolution.launch import spectral_product

        with matmul_precision(precision):
            return [spectral_product(**tensors, size=size, adjoint=adjoint)]

    def in_eager(**tensors: Any) -> list[Tensor]:
        return [eager.spectral_product(**tensors, size=size, adjoint=adjoint)]

    tensors = {
        "spectrum": inputs.normal(p.k, p.m if adjoint else p.n, p.matrices, 2),
        "weight": inputs.normal(grid.paired, p.m, p.n, 2, scale=p.n**-0.5),
        "own_weight": inputs.normal(len(grid.own), p.m, p.n, scale=p.n**-0.5) if real else None,
    }
    return Case(tensors, launch, in_eager)


def _gradient_case(problem: Problem, inputs: Inputs, *, precision: str) -> Case:
    p, (size, real) = problem, _line(problem)

    def launch(grad: Tensor, spectrum: Tensor) -> list[Tensor]:
        from projunn_kernels.convolution.launch import spectral_gradient

        with matmul_precision(precision):
            return _given(spectral_gradient(grad, spectrum, size, real, 0.5))

    def in_eager(grad: Tensor, spectrum: Tensor) -> list[Tensor]:
        return _given(eager.spectral_gradient(grad, spectrum, size, real, 0.5))

    def _given(gradients: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [gradient for gradient in gradients if gradient.numel()]

    tensors = {
        "grad": inputs.normal(p.k, p.m, p.matrices, 2),
        "spectrum": inputs.normal(p.k, p.n, p.matrices, 2),
    }
    return Case(tensors, launch, in_eager)


def _numbers(problem: Problem) -> int:
    """Two spectra and the matrices, complex at every frequency."""
    p = problem
    return 2 * p.matrices * (p.k * (p.m + p.n) + p.m * p.n) // p.width


SPECTRAL_PRODUCT = Kernel(
    name="spectral_product",
    functions=("spectral_product_kernel",),
    closed_form=_tiles,
    candidates=_candidates,
    case=_product_case,
    small=_small,
    variants={"adjoint": (False, True), "precision": ("highest", "high")},
    problem=_problem("spectral_product"),
    standard=_standard("spectral_product"),
    compiled=_compiled("spectral_product"),
    numbers=_numbers,
)
SPECTRAL_GRADIENT = Kernel(
    name="spectral_gradient",
    functions=("spectral_gradient_kernel",),
    closed_form=_tiles,
    candidates=_candidates,
    case=_gradient_case,
    small=_small,
    variants={"precision": ("highest", "high")},
    problem=_problem("spectral_gradient"),
    standard=_standard("spectral_gradient"),
    compiled=_compiled("spectral_gradient"),
    numbers=_numbers,
)
