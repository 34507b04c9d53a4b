"""Convolutions: transforms, products and norms of layers; layers and ResNet9 against cuDNN.

layers      forward and backward of ResNet9's layers on 256 images of CIFAR10's size, as a CUDA graph
            with nothing in cache: ours as users get it and on PyTorch's operations, in float32 and in
            TF32, against a 3 x 3 ``nn.Conv2d``; and the published layer, eagerly
parts       the transforms and the products at every frequency alone, copies of as many bytes, and a
            large matrix product
ResNet9     forward and backward, eager and compiled, with unitary and with plain convolutions
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import projunn
from bench.bench_conv import forward_backward
from bench.gpu import published
from bench.gpu.accuracy import share
from bench.gpu.case import Case, Step
from bench.gpu.machine import Machine, matmul_precision
from bench.gpu.timing import Timing
from projunn.models import ResNet9
from projunn.nn import UnitaryConv2d
from projunn_kernels import fourier_inverse, fourier_transform, frequencies
from projunn_kernels.convolution import products

BATCH = 256
# Channels in and out and side of the layers, width 64; the first stand for the rest.
LAYERS = (
    *((64, 64, 32), (128, 128, 16), (64, 128, 32), (256, 256, 8), (128, 256, 16), (3, 64, 32)),
    (32, 32, 64),
)
SHAPES = (
    ((8, 8), True, 3, 5, 4),
    ((3, 4), False, 2, 3, 4),
    ((7, 5), True, 33, 17, 3),
    ((13,), True, 1, 1, 1),
    ((2, 4, 4), True, 2, 3, 2),
    ((9, 4), False, 5, 18, 33),
    ((32, 32), True, 64, 64, 64),
    ((8, 8), True, 64, 256, 256),
)
ALLOWED = {"highest": 2e-6, "high": 5e-4}  # of a norm, by a layer
OURS, ON_TORCH = "UnitaryConv2d", "UnitaryConv2d on PyTorch"
CUDNN, PUBLISHED = "nn.Conv2d 3x3", "published layer"
PARTS = ("transform", "inverse", "spectral product", "spectral gradient")
NETWORKS = (("highest", False), ("high", False), ("high", True))  # precision, compiled


def checks(on: Machine, small: bool) -> list[Case]:
    """Transforms, products, adjoints and gradients, by the error of float32 PyTorch."""
    shapes = SHAPES[:2] if small or on.dry else SHAPES
    kinds = {True: "spectral real", False: "spectral complex"}
    found = [Case(f"spectral {shape}", kinds[shape[1]], _check(on, *shape)) for shape in shapes]
    for side, precision in itertools.product((32,) if small else (8, 32, 64), ALLOWED):
        call = functools.partial(_norms, on, side, precision)
        found.append(Case(f"spectral norms at {side}, {precision}", "spectral norms", call))
    return found


def _norms(on: Machine, side: int, precision: str) -> float:
    """The mean change of an image's norm by a layer, of the change that is allowed."""
    channels, side = on.size(64, 4), on.size(side, 4)
    layer = UnitaryConv2d(channels, channels, side, bias=False, device=on.device)
    images = torch.randn(on.size(64, 2), channels, side, side, device=on.device)
    with matmul_precision(precision), torch.no_grad():
        outputs = layer(images)
    before, after = (t.double().flatten(1).norm(dim=1) for t in (images, outputs))
    return (after / before - 1).mean().abs().item() / ALLOWED[precision]


def _check(
    on: Machine, size: tuple[int, ...], real: bool, batch: int, m: int, n: int
) -> Callable[[], float]:
    def call() -> float:
        grid, line = frequencies(size, real), list(size)
        pair = () if real else (2,)
        tensors = (
            torch.randn(batch, n, *size, *pair),
            torch.randn(batch, m, *size, *pair),
            torch.randn(grid.paired, m, n, 2),
            torch.randn(len(grid.own), m, n) if real else None,
            torch.randn(m, *pair),
        )

        def everything(x: Tensor, y: Tensor, w: Tensor, r: Tensor | None, bias: Tensor) -> list[Tensor]:
            x_bins, y_bins = (fourier_transform(t, line, real) for t in (x, y))
            there, back = products.product(x_bins, w, r), products.adjoint(y_bins, w, r)
            signals = fourier_inverse(*there, bias, line, real), fourier_inverse(*back, None, line, real)
            return [*x_bins, *signals, *products.gradient(y_bins, x_bins)]

        exact = everything(*(t if t is None else t.double() for t in tensors))
        there = tuple(t if t is None else t.to(on.device) for t in tensors)
        with matmul_precision("highest"):
            ours = everything(*there)
            with projunn.backend("torch"):
                plain = everything(*there)
        triples = zip(ours, plain, exact, strict=True)
        return max(share(a, b, c) for a, b, c in triples if c.numel())

    return call


def name(what: str, layer: tuple[int, int, int], precision: str, way: str = "captured") -> str:
    """The name of a row: ``UnitaryConv2d 64 to 128 at 32, high, captured``."""
    return f"{what} {layer[0]} to {layer[1]} at {layer[2]}, {precision}, {way}"


def network_name(conv: str, precision: str, compiled: bool) -> str:
    """The name of a row: ``ResNet9 unitary, highest, compiled``."""
    return f"ResNet9 {conv}, {precision}, {'compiled' if compiled else 'eager'}"


def timings(on: Machine) -> list[Timing]:
    """Two layers, ResNet9, the published layer, parts alone, the other layers."""
    found = [
        _timing(on, what, layer, precision)
        for layer in LAYERS
        for precision in ("highest", "high")
        for what in (CUDNN, OURS, ON_TORCH)
    ]
    networks = [
        _network(on, conv, precision, compiled)
        for precision, compiled in NETWORKS
        for conv in ("plain", "unitary")
    ]
    alone = [_timing(on, PUBLISHED, layer, "highest") for layer in LAYERS if layer[0] == layer[1]]
    return found[:12] + networks + alone + _parts(on) + found[12:]


def _timing(on: Machine, what: str, layer: tuple[int, int, int], precision: str) -> Timing:
    build = functools.partial(step, on, what, layer)
    way = "eager" if what == PUBLISHED else "captured"
    options: dict[str, Any] = {"way": way, "precision": precision, "compile": what == OURS}
    options["backend"] = "torch" if what == ON_TORCH else None
    says = {"what": what, "channels": layer[0], "out": layer[1], "side": layer[2], "batch": BATCH}
    return Timing(name(what, layer, precision, way), f"{what}, {way}", build, says=says, **options)


def step(on: Machine, what: str, layer: tuple[int, int, int]) -> Step:
    """Forward and backward of one layer."""
    channels, out, side = (on.size(size, 4) for size in layer)
    x = torch.randn(on.size(BATCH, 2), channels, side, side, device=on.device, requires_grad=True)
    if what == CUDNN:
        return forward_backward(nn.Conv2d(channels, out, 3, padding=1, device=on.device), x)
    if what == PUBLISHED:
        return forward_backward(published.convolution(channels, side, on.device), x)
    return forward_backward(UnitaryConv2d(channels, out, side, device=on.device), x)


def _network(on: Machine, conv: str, precision: str, compiled: bool) -> Timing:
    def build() -> Step:
        side = on.size(32, 8)
        model = ResNet9(3, 10, side, conv, on.size(64, 2)).to(on.device)
        x = torch.randn(on.size(BATCH, 2), 3, side, side, device=on.device, requires_grad=True)
        network = torch.compile(model, backend=on.compiler) if compiled else model
        return forward_backward(network, x)

    row = network_name(conv, precision, compiled)
    says = {"what": f"ResNet9 {conv}", "batch": BATCH, "compiled": compiled}
    compile = conv == "unitary" or compiled
    return Timing(row, f"ResNet9 {conv}", build, "eager", says, compile, precision)


def part_name(what: str, layer: tuple[int, int, int], precision: str) -> str:
    """The name of a row: ``spectral product 64 at 32, high``."""
    return f"{what} {layer[0]} at {layer[2]}, {precision}"


def part_cases() -> list[tuple[str, tuple[int, int, int], str]]:
    """The parts that are timed alone: which, of which layer, in which precision."""
    return [
        (what, layer, precision)
        for layer in LAYERS
        if layer[0] == layer[1]
        for precision in ("highest", "high")
        for what in PARTS
    ]


def copy_name(what: str, layer: tuple[int, int, int]) -> str:
    """The name of a row: the copy that moves as many bytes as that part of that layer."""
    kind = "products" if what.startswith("spectral") else "transforms"
    return f"copy for {kind} {layer[0]} at {layer[2]}, captured"


def matrix_product_name(precision: str) -> str:
    """The name of a row: a product of two matrices of 4096 x 4096."""
    return f"matrix product 4096, {precision}"


def _parts(on: Machine) -> list[Timing]:
    """Transforms and products, and what says how fast they could be: copies, and a large product."""
    found = []
    size = on.size(4096, 8)
    for precision in ("highest", "high"):
        title, build = matrix_product_name(precision), functools.partial(_matrix_product, on, size)
        says = {"what": "matrix product", "flops": 2 * size**3}
        options: dict[str, Any] = {"compile": False, "precision": precision}
        found.append(Timing(title, "matrix product", build, says=says, **options))
    copied = set()
    for what, layer, precision in part_cases():
        n, side, batch = on.size(layer[0], 4), on.size(layer[2], 4), on.size(BATCH, 2)
        grid = frequencies((side, side), True)
        numbers, flops = 2 * batch * n * grid.points, 0
        if what.startswith("spectral"):
            numbers += grid.points * n * n  # every W is read, or its gradient written
            flops = 8 * grid.paired * n * n * batch
        says = {"bytes": 4 * numbers, "flops": flops}
        title = copy_name(what, layer)
        if title not in copied:
            copied.add(title)
            build = functools.partial(_copy, on, says["bytes"])
            row = {"what": "copy", "bytes": says["bytes"]}
            found.append(Timing(title, "copy", build, says=row, compile=False))
        build = functools.partial(_part, on, what, n, side, batch)
        title, row = part_name(what, layer, precision), {"what": what} | says
        found.append(Timing(title, what, build, says=row, precision=precision))
    return found


def _copy(on: Machine, moved: int) -> Step:
    source = torch.empty(moved // 8, device=on.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _matrix_product(on: Machine, size: int) -> Step:
    left, right = torch.randn(2, size, size, device=on.device)
    return lambda: left @ right


def _part(on: Machine, what: str, n: int, side: int, batch: int) -> Step:
    line = [side, side]
    grid = frequencies((side, side), True)
    signal = torch.randn(batch, n, side, side, device=on.device)
    x, y = (fourier_transform(signal, line, True) for _ in range(2))
    weight = torch.randn(grid.paired, n, n, 2, device=on.device)
    own = torch.randn(len(grid.own), n, n, device=on.device)
    bias = torch.randn(n, device=on.device)
    return {
        "transform": lambda: fourier_transform(signal, line, True),
        "inverse": lambda: fourier_inverse(*x, bias, line, True),
        "spectral product": lambda: products.product(x, weight, own),
        "spectral gradient": lambda: products.gradient(y, x),
    }[what]
