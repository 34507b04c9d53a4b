"""How the transforms are tiled, and what they are tuned and checked on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from projunn_kernels.configs.kernel import Case, Inputs, Kernel
from projunn_kernels.configs.problem import Config, Device, Problem
from projunn_kernels.convolution import eager
from projunn_kernels.convolution.grid import frequencies
from projunn_kernels.convolution.tables import few_points, padded
from projunn_kernels.precision import matmul_precision

LONGEST_SIDE = 64  # points of a side that kernels transform
# Points of a height up to which a program has whole planes where operands of products need registers,
# and of a slice of those that are taller.
_LONGEST_HEIGHT, _SLICE = 32, 16
# Compute capabilities with `wgmma` or `tcgen05`, whose operands are in memory, and the interpreter.
_WITHOUT_REGISTERS = ("9.0", "10.0", "10.3", "0.0")
_IMAGES = 256  # that transforms are tuned for


def has_kernels(size: Sequence[int]) -> bool:
    """True if kernels transform real signals of this size."""
    return len(size) <= 2 and max(size) <= LONGEST_SIDE


def _tiles(problem: Problem, device: Device) -> Config:
    """Planes a program (``rows``), and programs a multiprocessor (``stages``).

    ``columns`` are the points of a slice, or 1 if planes are whole.

    Of many points they are 8192 with what pads them, but of 64 x 64.  Planes lie side by side in the
    spectrum: 8 of them are 64 bytes.  Where constants stay in shared memory as the products read them,
    and sides are short, 128 registers a thread are enough.  In slices 8192 points take at most 176
    registers a thread and 90 KB of shared memory.
    """
    if few_points((problem.m, problem.n)):
        return Config(64 if device.capability in _WITHOUT_REGISTERS else 32, 1, 4)
    height, width = padded(problem.m), padded(problem.n)
    if problem.m > _LONGEST_HEIGHT and device.capability not in _WITHOUT_REGISTERS:
        return _in_slices(problem)
    two = device.capability == "9.0" and max(height, width) <= 32
    return Config(max(4, 8192 // (height * width)), 1, 8, stages=2 if two else 1)


def _in_slices(problem: Problem) -> Config:
    return Config(8192 // (padded(problem.m) * padded(problem.n)), _SLICE, 8)


def _candidates(problem: Problem, device: Device) -> list[Config]:
    usual = _tiles(problem, device)
    if usual.columns > 1:
        return [Config(usual.rows, points, warps) for points in (_SLICE, 8) for warps in (8, 4)]
    few = few_points((problem.m, problem.n))
    tried = [
        Config(planes, 1, warps, stages=usual.stages)
        for planes in (usual.rows // 2, usual.rows, 2 * usual.rows)
        if few or planes * padded(problem.m) * padded(problem.n) <= 16384
        for warps in (4, 8, 16)
        if usual.warps * planes <= 2 * warps * usual.rows
    ]
    if not few and device.capability not in _WITHOUT_REGISTERS:
        tried.append(_in_slices(problem))
    return [usual, *(config for config in tried if config != usual)]


def _small(problem: Problem, config: Config) -> Problem:
    """Planes as they are, since odd and even sides take other bins: a few images with a tail.

    Their number is a multiple of 16 where that of the problem is: Triton then compiles wider accesses.
    """
    channels = _channels(problem)
    images = max(2, -(-(config.rows + 3) // channels))
    return Problem(problem.operation, False, 1, problem.m, problem.n, images * channels)


def _channels(problem: Problem) -> int:
    """Of the images of a case."""
    return 3 if problem.matrices % 16 else 16


def _planes(name: str, sizes: tuple[tuple[int, int, int], ...]) -> list[Problem]:
    return [Problem(name, False, 1, *size) for size in sizes]


# ResNet9 on 256 images of 32 x 32: height, width, planes.
_NETWORK = ((32, 32, 64 * _IMAGES), (16, 16, 128 * _IMAGES), (8, 8, 256 * _IMAGES))
_OTHERS = ((28, 28), (7, 14), (16, 32), (32, 3), (1, 64), (5, 6), (64, 64), (64, 16), (32, 64), (33, 20))
_COMPILED = (*_NETWORK, *((*size, 4096) for size in _OTHERS))


def _transform_case(problem: Problem, inputs: Inputs, *, precision: str, apart: bool) -> Case:
    size = _size(problem)

    def launch(signal: Tensor) -> list[Tensor]:
        from projunn_kernels.convolution.launch import transform

        with matmul_precision(precision):
            return _given(transform(signal, size, True))

    def in_eager(signal: Tensor) -> list[Tensor]:
        return _given(eager.transform(signal, size, True))

    images, channels = _images(problem)
    shape = (images, *size, channels) if apart else (images, channels, *size)
    # A recorded launch has the strides of a signal with memory too.
    signal = torch.empty(shape, device="meta") if inputs.hollow else inputs.normal(*shape)
    return Case({"signal": signal.movedim(-1, 1) if apart else signal}, launch, in_eager)


def _inverse_case(problem: Problem, inputs: Inputs, *, precision: str) -> Case:
    size, images = _size(problem), _images(problem)
    grid = frequencies(tuple(size), True)

    def launch(**tensors: Any) -> list[Tensor]:
        from projunn_kernels.convolution.launch import inverse

        with matmul_precision(precision):
            return [inverse(**tensors, size=size, real=True)]

    def in_eager(**tensors: Any) -> list[Tensor]:
        return [eager.inverse(**tensors, size=size, real=True)]

    tensors = {
        "paired": inputs.normal(grid.paired, *images, 2),
        "own": inputs.normal(len(grid.own), *images),
        "bias": inputs.normal(images[1]),
    }
    return Case(tensors, launch, in_eager)


def _images(problem: Problem) -> tuple[int, int]:
    """The images and the channels of each."""
    channels = _channels(problem)
    return problem.matrices // channels, channels


def _size(problem: Problem) -> list[int]:
    return [problem.n] if problem.m == 1 else [problem.m, problem.n]


def _given(spectrum: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [part for part in spectrum if part.numel()]


def _declared(
    name: str, functions: tuple[str, ...], case: Callable[..., Case], **more: tuple[bool, ...]
) -> Kernel:
    return Kernel(
        name=name,
        functions=functions,
        closed_form=_tiles,
        candidates=_candidates,
        case=case,
        small=_small,
        variants={"precision": ("highest", "high"), **more},
        standard=_planes(name, _NETWORK),
        compiled=_planes(name, _COMPILED),
        numbers=lambda problem: 2 * problem.m * problem.n * problem.matrices,
        exists=lambda problem, device: has_kernels(_size(problem)),
    )


FOURIER_TRANSFORM = _declared(
    "fourier_transform",
    ("plane_transform_kernel", "points_transform_kernel", "sliced_transform_kernel"),
    _transform_case,
    apart=(False, True),  # whether the points of a plane do not lie side by side
)
FOURIER_INVERSE = _declared(
    "fourier_inverse",
    ("plane_inverse_kernel", "points_inverse_kernel", "sliced_inverse_kernel"),
    _inverse_case,
)
