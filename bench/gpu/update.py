"""The update step: optimizers on a large weight and on banks, beside PyTorch's and other libraries'.

captured    one CUDA graph, nothing in cache; ours with ``capturable=True``, which a capture asks for:
            the steps are then counted on the device.  ``no polish`` leaves the correction of drift out
eager       what has no graph: POGO, geoopt, geotorch, PyTorch's parametrizations, the published code,
            and ours on PyTorch's operations (`backend("torch")`)

A row's ``bytes`` are those that have to move at least: a copy reads and writes W; a step of SGD, ours
too, reads D, reads W and writes W.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

import projunn
from bench import peers
from bench.gpu import published
from bench.gpu.case import Absent, Step
from bench.gpu.machine import Machine
from bench.gpu.timing import Timing
from bench.gpu.weights import haar
from projunn_kernels.constants import MAX_FUSED
from projunn_kernels.single_pass.tiles import MAX_WIDTH

Shape = tuple[int, ...]

BANKS: tuple[Shape, ...] = ((544, 64, 64), (144, 128, 128), (40, 256, 256))
# The first four stand for the rest where the run is cut.
FIRST = 4
SUBJECTS: tuple[tuple[Shape, str], ...] = (
    ((1024, 1024), "float32"),
    ((544, 64, 64), "float32"),
    ((4096, 4096), "complex64"),
    ((144, 128, 128), "complex64"),
    ((4096, 4096), "float32"),
    ((1024, 1024), "complex64"),
    ((544, 64, 64), "complex64"),
    ((144, 128, 128), "float32"),
    ((40, 256, 256), "float32"),
    ((2048, 2048), "float32"),
    ((8192, 8192), "float32"),
    ((40, 256, 256), "complex64"),
    ((2048, 2048), "complex64"),
    ((8192, 8192), "complex64"),
    ((16384, 16384), "float32"),
    ((16384, 16384), "complex64"),
)
RANKS = (2, 4, 8, 16, 64)
_RANKED = tuple(f"SGD k{k}" for k in RANKS)
RANKED: tuple[tuple[Shape, str], ...] = (
    ((1024, 1024), "float32"),
    ((544, 64, 64), "float32"),
    ((4096, 4096), "float32"),
    ((144, 128, 128), "float32"),
    ((544, 64, 64), "complex64"),
)
# Those whose rows the kernels of a single pass hold; banks of small matrices have one launch anyway.
SINGLE: tuple[tuple[Shape, str], ...] = tuple(
    (shape, dtype)
    for shape, dtype in SUBJECTS
    if MAX_FUSED < shape[-1] <= MAX_WIDTH // (2 if dtype == "complex64" else 1)
)
ADAM: tuple[tuple[Shape, str], ...] = (
    ((1024, 1024), "float32"),
    ((544, 64, 64), "float32"),
    ((4096, 4096), "float32"),
)
PEER_SIZES = (1024, 4096)
PEERS = ("pogo", "geoopt euclidean", "torch cayley", "geotorch", "torch matrix_exp")
PUBLISHED = ("T", "D")


def name(what: str, shape: Shape, dtype: str, way: str = "captured") -> str:
    """The name of a row: ``SGD k1 1024x1024 float32, captured``."""
    return f"{what} {'x'.join(map(str, shape))} {dtype}, {way}"


def timings(on: Machine) -> list[Timing]:
    """Rank 1 on some subjects, other ranks, AdamW, rank 1 on the rest, the others."""
    return [
        *(t for subject in SUBJECTS[:FIRST] for t in _at_rank_one(on, *subject)),
        *(_ranked(on, *subject, k) for k in RANKS for subject in RANKED if k <= subject[0][-1]),
        *(t for subject in ADAM for t in _adam(on, *subject)),
        *(t for subject in SUBJECTS[FIRST:] for t in _at_rank_one(on, *subject)),
        *(t for n in PEER_SIZES for t in _others(on, (n, n), "float32")),
        *(_published(on, kind, BANKS[0], "complex64") for kind in PUBLISHED),
    ]


def _timing(
    what: str, shape: Shape, dtype: str, build: Callable[[], Step], passes: int, **options: object
) -> Timing:
    way = str(options.get("way", "captured"))
    numbers = functools.reduce(lambda a, b: a * b, shape, 8 if dtype == "complex64" else 4)
    says = {"what": what, "shape": "x".join(map(str, shape)), "dtype": dtype, "bytes": passes * numbers}
    kind = f"{what} {'bank' if len(shape) == 3 else 'matrix'}, {way}"
    kind = "SGD at a rank" if what in _RANKED else kind
    return Timing(name(what, shape, dtype, way), kind, build, says=says, **options)


def weight_and_gradient(on: Machine, shape: Shape, dtype: str) -> tuple[Tensor, Tensor]:
    weight = haar(on, *on.shape(*shape), dtype=getattr(torch, dtype))
    return weight, torch.randn_like(weight) / weight.shape[-1] ** 0.5


def stepper(
    on: Machine, rule: str, shape: Shape, dtype: str, *, count: int = 1, **options: object
) -> Step:
    """The step of one of our optimizers on ``count`` weights of one shape."""
    parameters = []
    for _ in range(count):
        weight, gradient = weight_and_gradient(on, shape, dtype)
        parameters.append(projunn.UnitaryParameter(weight))
        parameters[-1].grad = gradient
    return getattr(projunn.optim, rule)(parameters, lr=1e-2, **options).step


def plain_stepper(
    on: Machine, rule: str, shape: Shape, dtype: str, *, count: int = 1, **options: object
) -> Step:
    """The step of ``torch.optim``'s rule on as many unconstrained weights."""
    parameters = []
    for _ in range(count):
        weight, gradient = weight_and_gradient(on, shape, dtype)
        parameters.append(weight.requires_grad_())
        parameters[-1].grad = gradient
    return getattr(torch.optim, rule)(parameters, lr=1e-4, **options).step


def _at_rank_one(on: Machine, shape: Shape, dtype: str) -> list[Timing]:
    def copy() -> Step:
        source, target = weight_and_gradient(on, shape, dtype)
        return lambda: target.copy_(source)

    def ours(**options: object) -> Callable[[], Step]:
        options["capturable"] = on.capturable
        return functools.partial(stepper, on, "SGD", shape, dtype, **options)

    plain = functools.partial(plain_stepper, on, "SGD", shape, dtype, foreach=True)
    found = [
        _timing("copy", shape, dtype, copy, 2, compile=False),
        _timing("torch.optim.SGD", shape, dtype, plain, 3, compile=False),
        _timing("SGD k1", shape, dtype, ours(), 3),
        _timing("SGD k1 no polish", shape, dtype, ours(polish_every=0), 3, compile=False),
    ]
    if (shape, dtype) in SINGLE:
        single = ours(polish_every=0, factorization="single_pass")
        found.append(_timing("SGD single pass", shape, dtype, single, 3))
    return found


def _adam(on: Machine, shape: Shape, dtype: str) -> list[Timing]:
    """Both read D, and read and write W and the two averages."""
    ours = functools.partial(stepper, on, "AdamW", shape, dtype, capturable=on.capturable)
    options = {"fused": True, "capturable": on.capturable}
    plain = functools.partial(plain_stepper, on, "AdamW", shape, dtype, **options)
    found = [
        _timing("torch.optim.AdamW fused", shape, dtype, plain, 7, compile=False),
        _timing("AdamW k1", shape, dtype, ours, 7),
    ]
    if (shape, dtype) in SINGLE:
        single = functools.partial(ours, factorization="single_pass")
        found.append(_timing("AdamW single pass", shape, dtype, single, 7))
    return found


def _ranked(on: Machine, shape: Shape, dtype: str, k: int) -> Timing:
    rank = on.size(k, 2)
    build = functools.partial(stepper, on, "SGD", shape, dtype, rank=rank, capturable=on.capturable)
    return _timing(f"SGD k{k}", shape, dtype, build, 3)


def _others(on: Machine, shape: Shape, dtype: str) -> list[Timing]:
    """Eagerly: POGO and the PyTorch path cannot be captured."""

    def other(peer: str) -> Callable[[], Step]:
        def build() -> Step:
            try:
                return peers.made(peer, *weight_and_gradient(on, shape, dtype))
            except ImportError as error:
                raise Absent(f"{error.name} is not installed") from error

        return build

    ours = functools.partial(stepper, on, "SGD", shape, dtype)
    return [
        _timing("SGD k1", shape, dtype, ours, 3, way="eager", compile=False),
        _timing("SGD k1 on PyTorch", shape, dtype, ours, 3, way="eager", backend="torch", compile=False),
        *(_timing(peer, shape, dtype, other(peer), 3, way="eager", compile=False) for peer in PEERS),
        *(_published(on, kind, shape, dtype) for kind in PUBLISHED),
    ]


def _published(on: Machine, kind: str, shape: Shape, dtype: str) -> Timing:
    def build() -> Step:
        return published.step(*weight_and_gradient(on, shape, dtype), kind)

    return _timing(f"published projUNN-{kind}", shape, dtype, build, 3, way="eager", compile=False)
