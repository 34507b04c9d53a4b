"""How the transforms are tiled, and what they are tuned and checked on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.kernel import Case, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Device, Problem, power_of_two
from projunn_kernels.convolution import eager
from projunn_kernels.convolution.grid import frequencies
from projunn_kernels.precision import matmul_precision

LONGEST_LINE, LONGEST_SIDE = 64, 32  # points of a line, and of a plane's sides, that kernels transform
LEAST = 16  # rows and columns of the operands of `tl.dot`
_IMAGES = 256  # that transforms are tuned for


def _tiles(problem: Problem, device: Device) -> Config:
    """Planes x columns, and points of a row at a time (``depth``).

    Planes lie side by side in the spectrum: 8 of them are 64 bytes.
    """
    height = _height(problem)
    planes = 32 if height == 1 else max(8, 256 // height)
    return Config(planes, LEAST, 4 if height == 1 else 8, depth=LEAST)


def _height(problem: Problem) -> int:
    """With what pads it for `tl.dot`."""
    return 1 if problem.m == 1 else max(LEAST, power_of_two(problem.m))


def _candidates(problem: Problem, device: Device) -> list[Config]:
    height, usual = _height(problem), _tiles(problem, device)
    tried = [
        Config(planes, LEAST, warps, depth=depth)
        for planes in ((16, 32, 64) if height == 1 else (8, 16, 32))
        for warps in (4, 8, 16)
        for depth in (16, 32)
        if planes * height <= 32 * warps or height == 1
    ]
    return [usual, *(config for config in tried if config != usual)]


def _small(problem: Problem, config: Config) -> Problem:
    """A tail of planes; as many rows and columns with what pads them, but no power of two."""
    height, width = _height(problem), max(LEAST, power_of_two(problem.n))
    return Problem(problem.operation, False, 1, max(1, height - 3), width - 2, config.rows + 3)


def _planes(name: str, sizes: tuple[tuple[int, int, int], ...]) -> list[Problem]:
    return [Problem(name, False, 1, *size) for size in sizes]


# ResNet9 on 256 images of 32 x 32: height, width, planes.
_NETWORK = ((32, 32, 64 * _IMAGES), (16, 16, 128 * _IMAGES), (8, 8, 256 * _IMAGES))
_COMPILED = (*_NETWORK, (28, 28, 4096), (7, 14, 4096), (1, 64, 4096))


def _transform_case(problem: Problem, inputs: Inputs, *, precision: str) -> Case:
    p, size = problem, _size(problem)

    def launch(signal: Tensor) -> list[Tensor]:
        from projunn_kernels.convolution.launch import transform

        with matmul_precision(precision):
            return _given(transform(signal, size, True))

    def in_eager(signal: Tensor) -> list[Tensor]:
        return _given(eager.transform(signal, size, True))

    shape = 1, p.matrices, *size
    # A recorded launch has the strides of a contiguous signal too.
    signal = torch.empty(shape, device="meta") if inputs.hollow else inputs.normal(*shape)
    return Case({"signal": signal}, launch, in_eager)


def _inverse_case(problem: Problem, inputs: Inputs, *, precision: str) -> Case:
    p, size = problem, _size(problem)
    grid = frequencies(tuple(size), True)

    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.convolution.launch import inverse

        with matmul_precision(precision):
            return [inverse(**tensors, size=size, real=True)]

    def in_eager(**tensors: Any) -> list[Tensor]:
        return [eager.inverse(**tensors, size=size, real=True)]

    tensors = {
        "paired": inputs.normal(grid.paired, 1, p.matrices, 2),
        "own": inputs.normal(len(grid.own), 1, p.matrices),
        "bias": inputs.normal(p.matrices),
    }
    return Case(tensors, launch, in_eager)


def _size(problem: Problem) -> list[int]:
    return [problem.n] if problem.m == 1 else [problem.m, problem.n]


def _given(spectrum: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [part for part in spectrum if part.numel()]


def _declared(name: str, function: str, case: Callable[..., Case]) -> Kernel:
    return Kernel(
        name=name,
        functions=(function,),
        closed_form=_tiles,
        candidates=_candidates,
        case=case,
        small=_small,
        variants={"precision": ("highest", "high")},
        standard=_planes(name, _NETWORK),
        compiled=_planes(name, _COMPILED),
        numbers=lambda problem: 2 * problem.m * problem.n * problem.matrices,
    )


FOURIER_TRANSFORM = _declared("fourier_transform", "fourier_transform_kernel", _transform_case)
FOURIER_INVERSE = _declared("fourier_inverse", "fourier_inverse_kernel", _inverse_case)
